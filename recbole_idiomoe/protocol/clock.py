"""How long the parts of a run take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recbole_idiomoe.protocol.evaluation import Observer


class Clock:
    """Adds up the seconds of blocks, by name.

    Attributes:
        seconds: of blocks that have ended, in this process and in the processes before it whose
            state it was given.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def start(self, name: str) -> None:
        """A block called ``name`` begins."""
        self._started[name] = time.perf_counter()

    def stop(self, name: str) -> None:
        """The block called ``name`` has ended."""
        self.add(name, time.perf_counter() - self._started.pop(name))

    def add(self, name: str, seconds: float) -> None:
        """Count ``seconds`` more for ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def so_far(self) -> dict[str, float]:
        """Seconds by name, with those of blocks that have not ended."""
        now = time.perf_counter()
        running = {name: now - start for name, start in self._started.items()}
        names = self.seconds.keys() | running.keys()
        return {name: self.seconds.get(name, 0.0) + running.get(name, 0.0) for name in names}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``, also if it fails."""
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)


class EvaluationTime(Observer):
    """Adds the time of evaluations to ``evaluate`` of ``clock``."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def started(self, loader: Any) -> None:
        self.clock.start("evaluate")

    def finished(self) -> None:
        self.clock.stop("evaluate")
