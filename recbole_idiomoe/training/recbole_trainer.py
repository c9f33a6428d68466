"""RecBole's trainers, made to be observed, to stop at a non-finite loss, and to resume exactly.

RecBole resumes from the best epoch; here training continues after the last finished epoch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.utils import set_color

from recbole_idiomoe.base.files import atomic_write
from recbole_idiomoe.training.loss_watch import stop_training
from recbole_idiomoe.training.observed import ObservedTrainer
from recbole_idiomoe.training.state import (
    other_architecture,
    read_state,
    set_random_state,
    write_state,
)


class RecBoleTrainer(ObservedTrainer):
    """A base class in front of one of RecBole's trainers that stops at a non-finite loss."""

    def __init__(self, config: Config, model: Any) -> None:
        super().__init__(config, model)
        self._users: deque[Any] = deque([[], []], maxlen=2)  # of the previous and the current step

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        calculate_loss = loss_func or self.model.calculate_loss
        self._epoch, self._dataset = epoch_idx, train_data._dataset

        def watched(interaction: Interaction) -> Any:
            self._users.append(interaction[self._dataset.uid_field])
            return calculate_loss(interaction)

        return super()._train_epoch(train_data, epoch_idx, watched, show_progress)

    def _check_nan(self, loss: torch.Tensor) -> None:
        # RecBole only stops at nan, with a traceback, and continues at infinity.
        if not math.isfinite(value := loss.item()):
            before, users = self._users
            stop_training(self.folder, self._dataset, value, self._epoch, users, before)


class ResumableTrainer(RecBoleTrainer):
    """A :class:`RecBoleTrainer` that writes its state at the end of every epoch.

    RecBole's loop has no hook after validation and early stopping, so the state of an epoch is
    written when the next epoch begins or the loop ends.
    """

    _resumed: dict[str, Any] | None = None
    _loaders: tuple[Any, ...] = ()

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, after :meth:`resume_checkpoint` from the resumed state; see RecBole's ``fit``."""
        # Each loader shuffles with its own generator, whose state depends on the earlier epochs.
        self._loaders = tuple(loader for loader in (train_data, valid_data) if loader is not None)
        if self._resumed is not None:
            for loader, state in zip(self._loaders, self._resumed["loaders"], strict=True):
                loader.generator.set_state(state.cpu())
            set_random_state(self._resumed["random"])
        result = super().fit(train_data, valid_data, *args, **kwargs)
        self._write_state(max(self.train_loss_dict, default=-1))
        return result

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Resume after the last finished epoch of a run, or start again if there is none.

        Args:
            resume_file: the folder of the run.

        Raises:
            CheckpointError: the state is damaged, or belongs to another model.
        """
        state = read_state(self, Path(resume_file))
        if state is None:
            return
        try:
            self.model.load_state_dict(state["model"])
            self.model.load_other_parameter(state["other_parameter"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise other_architecture(Path(resume_file), error) from error
        self._resumed = state
        if self.is_out_of_patience:
            self.epochs = self.start_epoch

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if epoch_idx > self.start_epoch:
            self._write_state(epoch_idx - 1)
        return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)

    def _write_state(self, epoch: int) -> None:
        if epoch < self.start_epoch:  # no epoch was trained in this process
            return
        others = self.model.other_parameter().items()
        write_state(
            self,
            epoch,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            # The weights of modules are already in the model's state.
            other_parameter={k: v for k, v in others if not isinstance(v, torch.nn.Module)},
            loaders=[loader.generator.get_state() for loader in self._loaders],
        )

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if epoch < 0 and self.start_epoch > 0:
            return  # resumed after the last epoch; RecBole would save its weights as the best
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        with atomic_write(path) as aside:
            super()._save_checkpoint(epoch, verbose=False, saved_model_file=aside, **kwargs)
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")


class UntrainedTrainer(ResumableTrainer):
    """RecBole's trainer for a model without parameters, which validates once and saves.

    RecBole's own ``TraditionalTrainer`` would run an epoch of zero losses.
    """

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        # RecBole's checkpoints need the state of an optimizer.
        optimizer: torch.optim.Optimizer = super()._build_optimizer(params=[{"params": []}])
        return optimizer

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Validate and save; arguments and result are those of RecBole's ``Trainer.fit``."""
        self.eval_collector.data_collect(train_data)
        if valid_data is not None:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(
                valid_data, show_progress=show_progress
            )
            if callback_fn:
                callback_fn(0, self.best_valid_score)
        if saved:
            self._save_checkpoint(-1, verbose=verbose)
        return self.best_valid_score, self.best_valid_result
