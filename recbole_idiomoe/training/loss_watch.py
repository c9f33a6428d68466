"""A training loss that is no number stops the run, and says on whose histories it came about."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import NonFiniteLossError
from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.data.loader import WindowSampler

FILE_NAME = "non_finite_loss.json"
"""In the run's folder: ``epoch``, ``loss``, the ``users`` of the first step without a finite loss,
and ``users_before``, those of the step before, whose gradients may be what spoilt the weights."""


class LossWatch:
    """Tells, of the losses of many steps that are looked at together, in which it went wrong.

    Args:
        folder: the run's.
        dataset: the training split, which knows the users by name.
        users: the user row of every training window, shape ``(windows,)``.
        sampler: which windows are in which step.
    """

    def __init__(
        self, folder: Path, dataset: Any, users: np.ndarray, sampler: WindowSampler
    ) -> None:
        self._folder, self._dataset = folder, dataset
        self._users, self._sampler = users, sampler

    def check(self, sums: Sequence[torch.Tensor], epoch: int, step: int) -> float:
        """The last of ``sums``, for which the device is waited for; they are all finite.

        Args:
            sums: of the epoch's losses up to the newest steps, each a scalar; of several
                processes, each has its share.
            step: number of the last of them, from 1.

        Raises:
            NonFiniteLossError: one is not; it names the file.
        """
        every = distributed.summed(torch.stack(list(sums)))
        if math.isfinite(loss := every[-1].item()):
            return loss
        finite = every.isfinite().tolist()
        first = step - len(sums) + finite.index(False)
        _stop(self._folder, self._dataset, loss, epoch, self._of(first), self._of(first - 1))

    def _of(self, step: int) -> list[int]:
        """User rows of a step, from 0; there are none before the first."""
        if step < 0:
            return []
        users: list[int] = self._users[self._sampler.batches[step]].tolist()
        return users


class StepWatch:
    """Stops one of RecBole's trainers at a loss that is no finite number.

    With ``enable_scaler`` RecBole's fp16 keeps its own way with what overflows in gradients: the
    scaler leaves out such a step and lowers the scale. What is looked at here is the loss before
    it is scaled, which no scale can fix.

    Args:
        folder: the run's.
        dataset: the training split, which knows the users by name.
    """

    def __init__(self, folder: Path, dataset: Any) -> None:
        self._folder, self._dataset = folder, dataset
        self._epoch = 0
        self._newest: deque[Any] = deque([[], []], maxlen=2)

    def next_step(self, epoch: int, interaction: Interaction) -> None:
        """A step of ``epoch``, from 0, on the rows of ``interaction`` begins."""
        self._epoch = epoch
        self._newest.append(interaction[self._dataset.uid_field])

    def check(self, loss: torch.Tensor) -> None:
        """The step's loss, a scalar, is finite.

        Raises:
            NonFiniteLossError: it is not; it names the file with the users of the step.
        """
        if math.isfinite(value := loss.item()):
            return
        before, users = ([int(user) for user in rows] for rows in self._newest)
        _stop(self._folder, self._dataset, value, self._epoch, users, before)


@contextmanager
def users_kept(file: Path | None) -> Iterator[None]:
    """Around a run whose folder goes afterwards: ``FILE_NAME`` stays as ``file``, which is named.

    Args:
        file: what an earlier try of the run left there goes; None: nothing is kept, nor named.
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


def _stop(
    folder: Path,
    dataset: Any,
    loss: float,
    epoch: int,
    users: Iterable[int],
    users_before: Iterable[int],
) -> NoReturn:
    """Save the users to ``FILE_NAME``, each once, and raise."""

    def named(rows: Iterable[int]) -> list[str]:
        return [str(dataset.id2token(dataset.uid_field, row)) for row in sorted(set(rows))]

    content = {
        "epoch": epoch,
        "loss": str(loss),
        "users": named(users),
        "users_before": named(users_before),
    }
    path = folder / FILE_NAME
    distributed.from_main(lambda: write_text(path, json.dumps(content, indent=1)))
    raise NonFiniteLossError(
        f"the training loss became {loss} in epoch {epoch}; lower learning_rate, or set "
        "clip_grad_norm: {max_norm: 1.0} or precision: fp32",
        path,
    )
