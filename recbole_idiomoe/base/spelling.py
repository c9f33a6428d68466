"""Which known name a misspelt one is most likely meant for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], listing: str) -> str:
    """The end of a message about an unknown ``name``: the nearest known one, or ``listing``."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else f"; {listing} names them all."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``name`` is most likely meant for, whatever its case."""
    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else None
