"""IDIOMoE for RecBole: a language model that recommends, with an expert for items.

``run`` trains and measures models on data sets; ``load`` opens a saved model to
recommend with. Both are imported when first asked for, because they need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_idiomoe.quick_start import run
    from recbole_idiomoe.recommend import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]

_TESTED_RECBOLE = ("1.2.1",)
_LAZY = {"run": "recbole_idiomoe.quick_start", "load": "recbole_idiomoe.recommend"}


def _check_recbole() -> None:
    """Raise an ImportError that says what to type unless a tested RecBole is there.

    ``--no-deps`` because RecBole asks for a ray that has no wheel for Python 3.12
    and newer, and whose absence makes pip fetch an older RecBole; what RecBole
    really needs comes with this package.
    """
    mend = f"pip install --no-deps recbole=={_TESTED_RECBOLE[-1]}"
    try:
        import recbole
    except ImportError as error:
        raise ImportError(f"recbole_idiomoe needs RecBole: {mend}") from error
    if recbole.__version__ not in _TESTED_RECBOLE:
        raise ImportError(
            f"recbole_idiomoe is not tested with RecBole {recbole.__version__}: {mend}"
        )


_check_recbole()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
