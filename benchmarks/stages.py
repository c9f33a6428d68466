"""Time and memory of the stages of a process, measured from outside.

Does not import the package, so that RecBole can be measured as installed.
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
    """Time and memory of one stage."""

    name: str
    seconds: float
    gib: float
    """Peak resident memory of the process and its children, together."""


class Stopped(Exception):
    """The process exceeded its memory or time; ``stages`` has the finished ones."""

    def __init__(self, reason: str, stages: list[Stage]) -> None:
        super().__init__(reason)
        self.stages = stages


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Mark the block as a stage, in the process that is measured."""
    start = time.perf_counter()
    yield
    print(f"{_MARK}\t{name}\t{time.perf_counter() - start}", flush=True)


def measure(command: Sequence[str], most_gib: float, most_seconds: float) -> list[Stage]:
    """Run a Python script and measure its stages; its other output goes to stderr.

    The memory of a stage includes the code since the end of the previous one.

    Raises:
        Stopped: the script exceeded its memory or time and was killed.
        subprocess.CalledProcessError: the script failed.
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
        pass  # the process has just ended
    return total / 2**30
