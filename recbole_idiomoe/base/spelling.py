"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], listing: str) -> str:
    """The end of an error message about an unknown ``name``: a suggestion, else ``listing``."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else f"; {listing} names them all."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to ``name``, ignoring case; None if none is similar."""
    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else None
