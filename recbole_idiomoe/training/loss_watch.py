"""A training loss that is not finite stops the run, and the users of that step are saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import NonFiniteLossError
from recbole_idiomoe.base.files import write_text

FILE_NAME = "non_finite_loss.json"
"""A file in the run's folder with ``epoch``, ``loss``, the ``users`` of the first step whose loss
is not finite, and ``users_before``: the users of the step before it, whose gradients may have
damaged the weights."""


def stop_training(
    folder: Path,
    dataset: Any,
    loss: float,
    epoch: int,
    users: Iterable[int],
    users_before: Iterable[int],
) -> NoReturn:
    """Write :data:`FILE_NAME` and stop the run. With several processes, all ranks call this.

    Args:
        folder: the folder of the run.
        dataset: the training split, which knows the ids of the users.
        loss: the loss that is not finite.
        epoch: the number of the epoch, from 0.
        users: user rows of the first step whose loss is not finite; they may repeat.
        users_before: user rows of the step before; empty if there is none.

    Raises:
        NonFiniteLossError: always; the message names the file.
    """

    def ids(rows: Iterable[int]) -> list[str]:
        return [str(dataset.id2token(dataset.uid_field, row)) for row in sorted({*map(int, rows)})]

    content = {"epoch": epoch, "loss": str(loss)}
    content |= {"users": ids(users), "users_before": ids(users_before)}
    path = folder / FILE_NAME
    distributed.from_main(lambda: write_text(path, json.dumps(content, indent=1)))
    raise NonFiniteLossError(
        f"the training loss became {loss} in epoch {epoch}; lower learning_rate, or set "
        "clip_grad_norm: {max_norm: 1.0} or precision: fp32",
        path,
    )


@contextmanager
def users_kept(file: Path | None) -> Iterator[None]:
    """Keep the users of a non-finite loss in ``file``, for a run whose folder will be deleted.

    Args:
        file: where :data:`FILE_NAME` is copied to; the error then names this file. A file of an
            earlier attempt is deleted. With None, nothing is kept and the error names no file.

    Raises:
        NonFiniteLossError: the block raised it.
    """
    if file is not None:
        file.unlink(missing_ok=True)
    try:
        yield
    except NonFiniteLossError as error:
        if file is not None and error.users_file is not None:
            write_text(file, error.users_file.read_text(encoding="utf-8"))
        error.users_file = file
        raise
