"""Functions run by several processes that know of each other as a launcher's do."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.training.kills import PROCESSES

PATIENCE_S = 60


@dataclass
class Ranks:
    """Processes under way, and what they said and gave."""

    folder: Path
    processes: list[Any]
    codes: list[int | None] = field(default_factory=list)

    def wait(self) -> list[int | None]:
        """Exit codes, None for a process that has not ended in time and is ended here."""
        for process in self.processes:
            process.join(PATIENCE_S)
        self.codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return self.codes

    def said(self, rank: int) -> str:
        """All that a process wrote to its terminal."""
        return (self.folder / f"said-{rank}").read_text()

    def given(self) -> list[Any]:
        """What each process's function gave; they must all have ended well."""
        assert self.wait() == [0] * len(self.processes), "".join(
            self.said(rank)[-3000:] for rank in range(len(self.processes))
        )
        return [
            torch.load(self.folder / f"given-{rank}", weights_only=False)
            for rank in range(len(self.processes))
        ]


def started(ranks: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> Ranks:
    """``function(*arguments)`` on each rank, which stands in ``folder``; one: no launcher."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        PROCESSES.Process(target=_be, args=(rank, ranks, port, folder, function, arguments))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return Ranks(folder, processes)


def command(words_of_ranks: Sequence[Sequence[str]]) -> int:
    """The exit code of the command line, each rank with words of its own."""
    from recbole_idiomoe.cli import main

    return main(words_of_ranks[int(os.environ["RANK"])])


def runs(
    *wanted: dict[str, Any], patches: Sequence[Callable[[], Any]] = ()
) -> list[dict[str, Any] | None]:
    """The results of runs one after another, None of one that was interrupted.

    Args:
        wanted: arguments of ``run``.
        patches: contexts, one a run, in which it runs.
    """
    from contextlib import nullcontext

    from recbole_idiomoe.api import run

    results: list[dict[str, Any] | None] = []
    contexts = patches or [nullcontext] * len(wanted)
    for arguments, context in zip(wanted, contexts, strict=True):
        try:
            with context():
                [result] = run(**arguments)
            results.append(result)
        except KeyboardInterrupt:
            results.append(None)
    return results


@contextmanager
def interrupted_in_epoch(number: int) -> Iterator[None]:
    """Inside, every training is interrupted as its epoch ``number``, from 0, begins."""
    from recbole_idiomoe.training.trainer import IdiomoeTrainer

    original = IdiomoeTrainer._train_epoch

    def train_epoch(self: Any, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if epoch_idx == number:
            raise KeyboardInterrupt
        return original(self, train_data, epoch_idx, *args, **kwargs)

    IdiomoeTrainer._train_epoch = train_epoch  # type: ignore[method-assign]
    try:
        yield
    finally:
        IdiomoeTrainer._train_epoch = original  # type: ignore[method-assign]


def _be(
    rank: int, ranks: int, port: int, folder: Path, function: Callable[..., Any], arguments: Any
) -> None:
    os.chdir(folder)
    said = os.open(f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    from recbole_idiomoe.base import distributed

    try:
        distributed.start()
        given = function(*arguments)
        torch.save(given, f"given-{rank}")
        code = given if isinstance(given, int) else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
