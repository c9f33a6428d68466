"""Runs in processes that are killed with SIGKILL, and gone on with as a user would."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from recbole_idiomoe.training.state import STATE_FILE

# A server that has imported everything, also what waits for a language model, and of which every
# run is a child that has not: three seconds less for each.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["tests.training.kills"]
    + [
        f"recbole_idiomoe.{name}"
        for name in ("api", "models.language.recommender", "training.trainer")
    ]
)

SAME = ("best_valid_result", "test_result", "learning_curve", "epochs", "cold_start")


@dataclass
class Place:
    """Where a run writes, and what it is."""

    folder: Path
    model: str
    settings: Mapping[str, Any]

    @property
    def run(self) -> Path | None:
        """The run's folder, once ``--resume`` can take it."""
        found = sorted(self.folder.glob("saved/*/run.json"))
        assert len(found) <= 1
        return found[0].parent if found else None

    def process(self, kill_at: int | None = None) -> Any:
        """A process, started, that begins the run or goes on with it."""
        if self.run is not None:
            return started(self.folder, {"resume": str(self.run)}, kill_at)
        arguments = {"models": self.model, "datasets": "cycle", "settings": dict(self.settings)}
        return started(self.folder, arguments, kill_at)

    def finish(self) -> None:
        """Let the run end, from wherever it is."""
        process = self.process()
        process.join()
        assert process.exitcode == 0, (self.folder / "said").read_text()

    def training(self) -> Any:
        """A process of the run that has read its data and is about to train."""
        before, process = self._described(), self.process()
        while self._described() == before and process.is_alive():
            time.sleep(0.002)
        return process

    def _described(self) -> int | None:
        return self.run and (self.run / "run.json").stat().st_mtime_ns

    def kill_after(self, seconds: float, training: bool) -> bool:
        """Kill a process of the run, unless it has ended.

        Args:
            seconds: from its start, or from that of training.
        """
        process = self.training() if training else self.process()
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), (self.folder / "said").read_text()
        return bool(process.exitcode)

    def kill_at_write(self, number: int) -> bool:
        """Kill a process of the run at one of the moments that change its files."""
        process = self.process(kill_at=number)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), (self.folder / "said").read_text()
        return bool(process.exitcode)

    def outcome(self) -> dict[str, Any]:
        """What must not differ by a bit: metrics, the best weights, and the whole last state."""
        folder = self.run
        assert folder is not None
        result = json.loads((folder / "run.json").read_text())
        weights = load_file(folder / "model.safetensors")
        state = torch.load(folder / STATE_FILE, weights_only=True)
        return {
            "result": {name: result[name] for name in SAME if name in result},
            "weights": weights,
            "state": state,
            "files": sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")),
        }


def moments(seed: int, longest: float) -> Iterator[tuple[float, bool]]:
    """When to kill, without end, as :meth:`Place.kill_after` wants it; each as likely.

    Every fifth process is killed from its start on, when most of them still read their data.
    """
    draw = random.Random(seed)
    for number in count(1):
        yield draw.uniform(0.0, longest), number % 5 > 0


def duration(place: Place) -> float:
    """Seconds that the whole run takes from the start of training, in one process."""
    process = place.training()
    start = time.perf_counter()
    process.join()
    assert process.exitcode == 0, (place.folder / "said").read_text()
    return time.perf_counter() - start


def started(folder: Path, arguments: Mapping[str, Any], kill_at: int | None = None) -> Any:
    """A process that calls ``run`` with ``arguments``, standing in ``folder``."""
    process = PROCESSES.Process(target=_run, args=(folder, arguments, kill_at))
    process.start()
    return process


def _run(folder: Path, arguments: Mapping[str, Any], kill_at: int | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    from recbole_idiomoe.api import run
    from recbole_idiomoe.base.errors import IdiomoeError

    if kill_at is not None:
        _kill_at(kill_at)
    try:
        run(**arguments)
    except IdiomoeError as error:
        print(f"error: {error}", file=sys.stderr)
        os._exit(2)


def _kill_at(number: int) -> None:
    """Have this process kill itself at its ``number``-th moment, from 0, of writing a file.

    Moments are right before and right after each rename, and in the midst of what was written
    for it: the file, still aside, is cut in half then.
    """
    replace, left = os.replace, number

    def moment(half: Any = None) -> None:
        nonlocal left
        if left == 0:
            if half is not None and os.path.isfile(half):
                os.truncate(half, os.path.getsize(half) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def watched(source: Any, target: Any) -> None:
        moment(half=source)
        moment()
        replace(source, target)
        moment()

    os.replace = watched
