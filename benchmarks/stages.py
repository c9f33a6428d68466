"""Time and memory of what a process does, stage by stage, measured from outside.

It knows nothing of the package, so that RecBole can be measured as it is installed.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

_MARK = "@stage"
_EVERY_S = 0.02


@dataclass(frozen=True)
class Stage:
    """What one stage took."""

    name: str
    seconds: float
    gib: float
    """Highest resident memory of the process and of those that it started, together."""


class Stopped(Exception):
    """The process needed more memory or time than it was given; ``stages`` are those it ended."""

    def __init__(self, reason: str, stages: list[Stage]) -> None:
        super().__init__(reason)
        self.stages = stages


@contextmanager
def stage(name: str) -> Iterator[None]:
    """In the process that is measured: the block is a stage of this name."""
    start = time.perf_counter()
    yield
    print(f"{_MARK}\t{name}\t{time.perf_counter() - start}", flush=True)


def measure(command: Sequence[str], most_gib: float, most_seconds: float) -> list[Stage]:
    """The stages of a Python script; what it prints besides goes to the terminal.

    What comes before a stage counts for its memory too.

    Raises:
        Stopped: it took more than it may, and was ended.
        subprocess.CalledProcessError: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    stages, peak, highest = [], 0.0, 0.0
    while True:
        peak = max(peak, _resident_gib(process.pid))
        highest = max(highest, peak)
        spent = time.perf_counter() - start
        if peak > most_gib or spent > most_seconds:
            for child in (*psutil.Process(process.pid).children(recursive=True), process):
                child.kill()
            process.wait()
            raise Stopped(f"stopped at {highest:.1f} GiB after {spent:.0f} s", stages)
        try:
            line = lines.get(timeout=_EVERY_S)
        except queue.Empty:
            continue
        if line is None:
            break
        mark, *told = line.rstrip("\n").split("\t")
        if mark == _MARK:
            stages.append(Stage(told[0], float(told[1]), peak))
            peak = 0.0
        else:
            print(line, end="", file=sys.stderr)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)
    return stages


def _resident_gib(pid: int) -> float:
    total = 0
    try:
        first = psutil.Process(pid)
        for one in (first, *first.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it has just ended
    return total / 2**30
