"""How long the parts of a run take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the wall-clock seconds of named parts of a run, such as ``fit`` and ``evaluate``.

    Attributes:
        seconds: seconds by name, of the parts that have ended. In a resumed run they include the
            seconds of the processes that were interrupted.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to ``name``, also if the block raises."""
        self._started[name] = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - self._started.pop(name))

    def add(self, name: str, seconds: float) -> None:
        """Add ``seconds`` to ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def so_far(self) -> dict[str, float]:
        """Seconds by name, including the parts that are still running."""
        now, found = time.perf_counter(), dict(self.seconds)
        for name, start in self._started.items():
            found[name] = found.get(name, 0.0) + (now - start)
        return found
