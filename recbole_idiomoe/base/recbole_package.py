"""Which RecBole is installed, found without importing it where that is possible."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_TESTED_RECBOLE = ("1.2.1",)


def check_recbole() -> None:
    """Raise an ImportError that says what to type unless a tested RecBole is installed.

    The command has ``--no-deps`` because RecBole asks for a ray that has no wheel for Python 3.12
    and newer, and whose absence makes pip fetch an older RecBole. What RecBole really needs
    comes with this package.
    """
    fix = f"pip install --no-deps recbole=={_TESTED_RECBOLE[-1]}"
    try:
        import recbole
    except ImportError as error:
        raise ImportError(f"recbole_idiomoe needs RecBole: {fix}") from error
    if recbole.__version__ not in _TESTED_RECBOLE:
        raise ImportError(
            f"recbole_idiomoe is not tested with RecBole {recbole.__version__}: {fix}"
        )


def recbole_folder() -> Path:
    """The folder of the installed RecBole, which is not imported."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        check_recbole()
        raise ImportError("RecBole is not installed as files.")
    return Path(spec.origin).parent
