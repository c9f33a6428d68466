"""The settings of a run: read, merged and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_idiomoe.config.run_config import RunConfig

__all__ = ["RunConfig"]


def __getattr__(name: str) -> Any:
    """``RunConfig``, imported when it is asked for, because it imports RecBole and torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recbole_idiomoe.config.run_config import RunConfig

    return RunConfig
