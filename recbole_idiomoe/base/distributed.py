"""Several processes that are one run, as torchrun and ``accelerate launch`` start them.

Every process, a rank, runs the same program on the same data. Rank 0 alone writes, logs and
prints. In a process that no such launcher started, all of this does nothing.

What is large and quick (gradients, weights) goes through the default process group, in which
nobody waits for longer than ``STUCK``: who does has lost another. Objects, and the wait for what
rank 0 does alone, however long it takes, go through a second one over TCP, where a process that
has died is noticed because its connection is gone.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from recbole_idiomoe.base.errors import IdiomoeError, SettingError

STUCK = timedelta(minutes=10)
PATIENCE = timedelta(days=7)

Value = TypeVar("Value")

_objects: dist.ProcessGroup | None = None
_alone = False


@dataclass(frozen=True)
class OwnRows:
    """Which rows of a cut table are one rank's: ``size`` from ``start``, past the last one zeros.

    A parameter that is so cut has it as its attribute ``own_rows``.
    """

    rank: int
    size: int
    item_num: int

    @property
    def start(self) -> int:
        return self.rank * self.size

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """A copy of these of a table (item_num, d): (size, d)."""
        rows = whole[self.start : self.start + self.size]
        return torch.cat((rows, rows.new_zeros(self.size - len(rows), *rows.shape[1:])))


def own_rows(weight: Any) -> OwnRows | None:
    """Which rows of ``weight`` this rank has; None: all."""
    return getattr(weight, "own_rows", None)


def whole_shape(weight: torch.Tensor) -> torch.Size:
    """The shape of all of a weight, of which this rank may have a part."""
    rows = own_rows(weight)
    return torch.Size((rows.item_num, *weight.shape[1:])) if rows else weight.shape


def start() -> None:
    """Join the processes that the launcher started, once; nothing if there is no other.

    Raises:
        IdiomoeError: the launcher's variables are incomplete.
        SettingError: Accelerate is told to cut the model in a way of its own.
    """
    global _objects
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _objects is not None:
        return
    for way in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() == "true":
            raise SettingError(
                f"accelerate launch is told to use {way}: leave that out; where the model does not "
                "fit, give --sharding=fsdp2 to this command."
            )
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=STUCK)
        except ValueError as error:  # it names the variable that is missing
            raise IdiomoeError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but not all that a launcher says is "
                f"there: {error}; start with torchrun or accelerate launch."
            ) from error
    _objects = dist.new_group(backend="gloo", timeout=PATIENCE)


def is_launched() -> bool:
    """Whether this process is one of several, also while it works alone."""
    return _objects is not None


def world_size() -> int:
    """How many processes share the work at hand."""
    return 1 if _objects is None or _alone else dist.get_world_size()


def rank() -> int:
    """This process's number among them."""
    return 0 if world_size() == 1 else dist.get_rank()


def is_main() -> bool:
    """Whether this process writes, logs and prints."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine, which is also its GPU's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def from_main(function: Callable[[], Value]) -> Value:
    """What ``function`` gives on rank 0, which runs it alone while the others wait.

    To it, rank 0 is the only process. An error in it ends rank 0, and so all.
    """
    if world_size() == 1:
        return function()
    given: list[Any] = [None]
    if is_main():
        with _for_itself():
            given[0] = function()
    dist.broadcast_object_list(given, src=0, group=_objects)
    value: Value = given[0]
    return value


def gathered(value: Value) -> list[Value]:
    """Every rank's ``value``, on all of them, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=_objects)
    return found


def summed(values: torch.Tensor) -> torch.Tensor:
    """Sums over the ranks, element by element."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def stacked(value: torch.Tensor) -> torch.Tensor:
    """Each rank's ``value``, a scalar, on all of them: (ranks,)."""
    if world_size() == 1:
        return value.reshape(1)
    parts = [value.new_empty(1) for _ in range(world_size())]
    dist.all_gather(parts, value.reshape(1))
    return torch.cat(parts)


def gathered_on_main(value: torch.Tensor) -> list[torch.Tensor]:
    """Each rank's ``value``, all of one shape, on the CPU of rank 0; nothing on the others."""
    own = value.cpu().contiguous()
    if world_size() == 1:
        return [own]
    parts = [torch.empty_like(own) for _ in range(world_size())] if is_main() else []
    dist.gather(own, parts, dst=0)
    return parts


def largest(number: int) -> int:
    """The largest that any rank names."""
    return max(gathered(number))


def seed_others(*seed: int) -> None:
    """Give each rank but the first random numbers of its own, which follow from ``seed``.

    They need not be saved for a run to go on; those of rank 0 are, as in one process.
    """
    if not is_main():
        torch.manual_seed(int(np.random.SeedSequence((*seed, rank())).generate_state(1)[0]))


def check_alike(values: Mapping[str, Any]) -> None:
    """All ranks have the same ``values``.

    Raises:
        SettingError: they have not, on every rank; it names the first that differs.
    """
    first, *others = gathered(dict(values))
    for number, theirs in enumerate(others, start=1):
        for name in sorted(first.keys() | theirs.keys()):
            here, there = theirs.get(name), first.get(name)
            if here != there:
                raise SettingError(
                    f"rank {number} has {name}={here!r}, rank 0 has {there!r}: start all processes "
                    "with the same command, on the same files and versions."
                )


def refuse(what: str) -> None:
    """``what`` is for one process.

    Raises:
        SettingError: there are several.
    """
    if world_size() > 1:
        raise SettingError(
            f"{what} is run by one process: start it without torchrun or accelerate launch (of a "
            "table, --jobs=N runs N models at a time, each on a GPU of its own)."
        )


def as_one(main: Callable[[], int]) -> int:
    """The exit code of ``main``, the command line's, as one of several processes.

    A process that fails exits at once, without Python's clean-up, which may wait for the others:
    that it is gone is how they learn of it.
    """
    try:
        start()
        code = main()
    except IdiomoeError as error:
        code = 2
        _say(f"error: {error}")
    except BaseException as error:
        code = 1
        if _is_loss_of_another(error):
            _say(f"rank {rank()} stops: another process of the run is gone, and says why.")
        else:
            traceback.print_exc()
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        if is_main():  # where there is no agent of torchrun's, it has what is_first_to_say asks
            time.sleep(1)
        os._exit(code)
    if dist.is_initialized():
        dist.destroy_process_group()
    return code


def is_first_to_say(line: str) -> bool:
    """Whether no other rank has asked this of the same ``line``: an error of all is said once."""
    if _objects is None:
        return True
    with suppress(RuntimeError):  # the others may be gone, and what connected them
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add(f"recbole_idiomoe/{line}", 1) == 1)
    return True


@contextmanager
def _for_itself() -> Iterator[None]:
    """Inside, there is but one process."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def _is_loss_of_another(error: BaseException) -> bool:
    """Whether a collective failed, and not what this process does by itself."""
    lost = isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))
    return world_size() > 1 and (lost or isinstance(error, dist.DistError))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
