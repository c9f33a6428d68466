"""What a run goes on from: one file in its folder, replaced whole at the end of every epoch."""

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
    """Where torch's, numpy's and Python's random numbers are, as tensors and plain values.

    Of the GPUs, that which is used: another process or machine may not have the others.
    """
    _, numbers, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": (torch.from_numpy(np.asarray(numbers, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers of :func:`random_state`."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0].cpu())
    numbers, *rest = state["numpy"]
    np.random.set_state(("MT19937", numbers.cpu().numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def write_state(trainer: Any, epoch: int, **more: Any) -> None:
    """Write all that going on after ``epoch`` needs into the trainer's folder.

    Args:
        more: what the trainer has beside what all of RecBole's have; like all of a state, of
            tensors and plain values, which alone ``torch.load`` trusts.

    Raises:
        DiskFullError: there is no room; the state before it is untouched.
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
        with atomic_write(_file(trainer)) as aside:
            torch.save(state, aside)

    distributed.from_main(write)


def read_state(trainer: Any, folder: Path, in_parts: bool = False) -> dict[str, Any] | None:
    """The state in ``folder``, its bookkeeping given to ``trainer`` already; None: there is none.

    Model, optimizer and random numbers are left to the trainer.

    Args:
        in_parts: leave its tensors on the disk until they are read, of which this process will
            read but a part.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    path = folder / STATE_FILE
    if not path.exists():
        trainer.logger.warning(
            f"{folder} has no finished epoch to go on from: its run starts over, with its settings"
        )
        return None
    try:
        _check_sums(path)
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


def is_out_of_patience(trainer: Any) -> bool:
    """Whether early stopping has ended the training, in this process or the one before it."""
    stopped: bool = trainer.cur_step > trainer.stopping_step
    return stopped


def other_architecture(folder: Path, error: Exception) -> CheckpointError:
    """What a state that does not fit the model or its optimizer says."""
    return CheckpointError(
        f"{folder} holds another architecture ({type(error).__name__}); resume it with its own "
        "settings."
    )


def _check_sums(path: Path) -> None:
    """``torch.load`` does not look at the checksums that ``torch.save`` writes.

    Raises:
        BadZipFile: a part of the file is not what was written.
    """
    with ZipFile(path) as parts:
        if (altered := parts.testzip()) is not None:
            raise BadZipFile(f"{altered} was altered")


def _file(trainer: Any) -> Path:
    return Path(trainer.saved_model_file).parent / STATE_FILE
