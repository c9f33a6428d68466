"""The state from which a run resumes: one file, atomically replaced at the end of every epoch."""

from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import CheckpointError
from recbole_idiomoe.base.files import atomic_write

STATE_FILE = "training_state.pt"


def random_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's random numbers, as tensors and plain values.

    Only the GPU in use is included: another process or machine may not have the others.
    """
    _, numbers, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": (torch.from_numpy(np.asarray(numbers, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the random numbers that :func:`random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0].cpu())
    numbers, *rest = state["numpy"]
    np.random.set_state(("MT19937", numbers.cpu().numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def write_state(trainer: Any, epoch: int, **more: Any) -> None:
    """Write the state of ``trainer`` after ``epoch``, from 0, into the folder of its run.

    Args:
        trainer: an :class:`~recbole_idiomoe.training.observed.ObservedTrainer`.
        epoch: the number of the epoch that has just finished.
        more: the state of the model, the optimizer and whatever else the trainer needs, as tensors
            and plain values, because ``torch.load`` trusts nothing else.

    Raises:
        DiskFullError: there is no room; the earlier state is unchanged.
    """
    best = trainer.best_valid_result
    state = {
        "epoch": epoch,
        "cur_step": trainer.cur_step,
        "best_valid_score": float(trainer.best_valid_score),
        "best_valid_result": best and {name: float(value) for name, value in best.items()},
        "train_losses": {n: float(loss) for n, loss in trainer.train_loss_dict.items()},
        "learning_curve": trainer.learning_curve,
        "seconds": trainer.clock.so_far(),
        "random": random_state(),
        **more,
    }

    def write() -> None:
        with atomic_write(trainer.folder / STATE_FILE) as aside:
            torch.save(state, aside)

    distributed.from_main(write)


def read_state(trainer: Any, folder: Path, in_parts: bool = False) -> dict[str, Any] | None:
    """Read the state in ``folder``, and give ``trainer`` its progress, results and times.

    The trainer itself restores the model, the optimizer and the random numbers.

    Args:
        trainer: an :class:`~recbole_idiomoe.training.observed.ObservedTrainer`.
        folder: the folder of the run.
        in_parts: map the file into memory, for a process that needs only a part of the tensors.

    Returns:
        The state; None if no epoch has finished.

    Raises:
        CheckpointError: the state is damaged, or was written by another version.
    """
    path = folder / STATE_FILE
    if not path.exists():
        trainer.logger.warning(
            f"{folder} has no finished epoch to go on from: its run starts over, with its settings"
        )
        return None
    try:
        with ZipFile(path) as parts:  # torch.load ignores the checksums that torch.save writes
            if (altered := parts.testzip()) is not None:
                raise BadZipFile(f"{altered} was altered")
        where = torch.device("cpu") if in_parts else trainer.device
        state: dict[str, Any] = torch.load(
            path, map_location=where, weights_only=True, mmap=in_parts
        )
        trainer.start_epoch = state["epoch"] + 1
        trainer.cur_step = state["cur_step"]
        trainer.best_valid_score = state["best_valid_score"]
        best = state["best_valid_result"]
        trainer.best_valid_result = best and OrderedDict(best)
        trainer.train_loss_dict = dict(state["train_losses"])
        trainer.learning_curve = state["learning_curve"]
        for name, seconds in state["seconds"].items():
            trainer.clock.add(name, seconds)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError, BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged; type the run's own "
            "command again, without --resume."
        ) from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is of another version of this program; go on with that one, or type the "
            "run's own command again, without --resume."
        ) from error
    trainer.logger.info(f"Resuming {folder} at epoch {trainer.start_epoch}")
    return state


def other_architecture(folder: Path, error: Exception) -> CheckpointError:
    """The error for a state in ``folder`` that does not fit the model or its optimizer."""
    return CheckpointError(
        f"{folder} holds another architecture ({type(error).__name__}); resume it with its own "
        "settings."
    )
