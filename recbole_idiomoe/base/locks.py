"""Locks that all threads of the process share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_loading = threading.RLock()


@contextmanager
def loading() -> Iterator[None]:
    """Only one thread at a time builds or loads a model inside this block, or this function.

    Meanwhile transformers replaces functions of torch and of itself for the whole process, and
    sets torch's default dtype; each of two loads at once would see what the other one has set.
    """
    with _loading:
        yield
