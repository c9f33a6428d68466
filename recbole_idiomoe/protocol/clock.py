"""How long the parts of a run take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Adds up the seconds that functions take, by name.

    Attributes:
        seconds: of calls that have ended, in this process and in those whose state it went on from.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count ``seconds`` more for ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def so_far(self) -> dict[str, float]:
        """``seconds``, with those of calls that have not ended."""
        now = time.perf_counter()
        running = {name: now - start for name, start in self._started.items()}
        names = self.seconds.keys() | running.keys()
        return {name: self.seconds.get(name, 0.0) + running.get(name, 0.0) for name in names}

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added to ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._started[name] = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.add(name, time.perf_counter() - self._started.pop(name))

        return timed
