"""Runs of several processes, started by torchrun or ``accelerate launch``.

Every process (rank) runs the same program on the same data. Only rank 0 writes, logs and prints.
In a process that no launcher started, all functions here behave as for a single rank.

Tensors (gradients, weights) go through the default process group, whose timeout ``STUCK`` reveals
a lost process. Python objects, and long waits for work that only rank 0 does, go through a second
group over TCP, which notices a dead process by its closed connection.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

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
    """The rows of a sharded table that one rank holds: ``size`` rows from ``start``.

    Rows past the end of the table are zeros. A sharded parameter has this as its attribute
    ``own_rows``.
    """

    rank: int
    size: int
    item_num: int

    @property
    def start(self) -> int:
        return self.rank * self.size

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """A copy of this rank's rows of a whole table: (item_num, d) -> (size, d)."""
        rows = whole[self.start : self.start + self.size]
        return torch.cat((rows, rows.new_zeros(self.size - len(rows), *rows.shape[1:])))


def own_rows(weight: Any) -> OwnRows | None:
    """The rows of ``weight`` that this rank holds; None if it holds all of them."""
    return getattr(weight, "own_rows", None)


def whole_shape(weight: torch.Tensor) -> torch.Size:
    """The shape of the whole weight, also if this rank only holds a part of its rows."""
    rows = own_rows(weight)
    return torch.Size((rows.item_num, *weight.shape[1:])) if rows else weight.shape


def start() -> None:
    """Create the process groups, once; does nothing in a run of one process.

    Raises:
        IdiomoeError: the launcher's environment variables are incomplete.
        SettingError: Accelerate is configured to shard the model itself.
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
    """Whether a launcher started this process as one of several, also inside :func:`from_main`."""
    return _objects is not None


def world_size() -> int:
    """The number of processes that share the current work; 1 inside :func:`from_main`."""
    return 1 if _objects is None or _alone else dist.get_world_size()


def rank() -> int:
    """This process's number, from 0 to ``world_size() - 1``."""
    return 0 if world_size() == 1 else dist.get_rank()


def is_main() -> bool:
    """Whether this process writes, logs and prints."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def from_main(function: Callable[[], Value]) -> Value:
    """Run ``function`` on rank 0 while the others wait, and return its value on all ranks.

    Inside ``function``, rank 0 is the only process. An exception in it ends all ranks.
    """
    global _alone
    if world_size() == 1:
        return function()
    values: list[Any] = [None]
    if is_main():
        _alone = True
        try:
            values[0] = function()
        finally:
            _alone = False
    dist.broadcast_object_list(values, src=0, group=_objects)
    return cast(Value, values[0])


def gathered(value: Value) -> list[Value]:
    """The values of all ranks, on every rank, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=_objects)
    return found


def summed(values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of ``values`` over the ranks, on every rank."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def stacked(value: torch.Tensor) -> torch.Tensor:
    """The scalar ``value`` of every rank as one tensor (ranks,), on every rank."""
    if world_size() == 1:
        return value.reshape(1)
    parts = [value.new_empty(1) for _ in range(world_size())]
    dist.all_gather(parts, value.reshape(1))
    return torch.cat(parts)


def gathered_on_main(value: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of all ranks, of equal shape, on rank 0's CPU; an empty list elsewhere."""
    own = value.cpu().contiguous()
    if world_size() == 1:
        return [own]
    parts = [torch.empty_like(own) for _ in range(world_size())] if is_main() else []
    dist.gather(own, parts, dst=0)
    return parts


def largest(number: int) -> int:
    """The largest ``number`` of any rank."""
    return max(gathered(number))


def seed_others(*seed: int) -> None:
    """Seed torch's random numbers on each rank but the first, differently, from ``seed``.

    Checkpoints therefore only hold the random state of rank 0, as in a run of one process.
    """
    if not is_main():
        torch.manual_seed(int(np.random.SeedSequence((*seed, rank())).generate_state(1)[0]))


def check_alike(values: Mapping[str, Any]) -> None:
    """Check that all ranks have the same ``values``.

    Raises:
        SettingError: on every rank; the message names the first value that differs.
    """
    first, *others = gathered(dict(values))
    for number, theirs in enumerate(others, start=1):
        for name in sorted(first.keys() | theirs.keys()):
            if theirs.get(name) != first.get(name):
                raise SettingError(
                    f"rank {number} has {name}={theirs.get(name)!r}, rank 0 has "
                    f"{first.get(name)!r}: start all processes with the same command, on the same "
                    "files and versions."
                )


def refuse(what: str) -> None:
    """Refuse to do ``what``, which one process does, in a run of several.

    Raises:
        SettingError: there are several processes.
    """
    if world_size() > 1:
        raise SettingError(
            f"{what} is run by one process: start it without torchrun or accelerate launch (of a "
            "table, --jobs=N runs N models at a time, each on a GPU of its own)."
        )


def as_one(main: Callable[[], int]) -> int:
    """Run the command line's ``main`` as one of several processes and return its exit code.

    A process that fails exits at once, without Python's clean-up, which may wait for the others:
    the closed connection is how they notice.
    """
    try:
        start()
        code = main()
    except IdiomoeError as error:
        code = 2
        print(f"error: {error}", file=sys.stderr)
    except BaseException as error:
        code = 1
        if _is_loss_of_another(error):
            lost = f"rank {rank()} stops: another process of the run is gone, and says why."
            print(lost, file=sys.stderr)
        else:
            traceback.print_exc()
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        if is_main():  # it may serve the store that is_first_to_say asks
            time.sleep(1)
        os._exit(code)
    if dist.is_initialized():
        dist.destroy_process_group()
    return code


def is_first_to_say(line: str) -> bool:
    """Whether no other rank asked this for the same ``line``: a shared error is printed once."""
    if _objects is None:
        return True
    with suppress(RuntimeError):  # the store may be gone together with its process
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add(f"recbole_idiomoe/{line}", 1) == 1)
    return True


def _is_loss_of_another(error: BaseException) -> bool:
    """Whether a collective operation failed because another process is gone."""
    lost = isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))
    return world_size() > 1 and (lost or isinstance(error, dist.DistError))
