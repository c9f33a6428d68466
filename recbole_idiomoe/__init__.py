"""IDIOMoE for RecBole: a language model that recommends, with an expert for items.

``run`` trains and measures models on data sets, ``load`` opens a saved model to recommend with,
and ``register_model`` adds a model of your own. They are imported at their first use, because
they need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from recbole_idiomoe.base import __version__
from recbole_idiomoe.base.recbole_package import check_recbole

if TYPE_CHECKING:
    from recbole_idiomoe.api import register_model, run
    from recbole_idiomoe.recommend import load

__all__ = ["__version__", "load", "register_model", "run"]

_LAZY = {
    "run": "recbole_idiomoe.api",
    "register_model": "recbole_idiomoe.api",
    "load": "recbole_idiomoe.recommend",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_recbole()
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
