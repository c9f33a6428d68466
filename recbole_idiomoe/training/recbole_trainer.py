"""RecBole's trainers, made to be observed, to stop at a loss that is no number, and to resume.

RecBole's own resume from the best epoch; here training goes on exactly where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.utils import set_color

from recbole_idiomoe.base.files import atomic_write
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.training.loss_watch import StepWatch
from recbole_idiomoe.training.observed import ObservedTrainer
from recbole_idiomoe.training.state import (
    is_out_of_patience,
    other_architecture,
    read_state,
    set_random_state,
    write_state,
)


class RecBoleTrainer(ObservedTrainer):
    """A base before one of RecBole's trainers that stops at a loss that is no finite number."""

    _watch: StepWatch | None = None

    def join_run(self, file: Path, dataset: Any, clock: Clock) -> None:
        super().join_run(file, dataset, clock)
        self.watch_loss(file.parent, dataset)

    def watch_loss(self, folder: Path, dataset: Any) -> None:
        """Stop at a training loss that is not finite, and name its users in a file of ``folder``.

        Args:
            folder: of the run.
            dataset: the training split, which knows users by their ids.
        """
        self._watch = StepWatch(folder, dataset)

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Any = None,
        show_progress: bool = False,
    ) -> Any:
        calculate_loss = loss_func or self.model.calculate_loss

        def watched(interaction: Interaction) -> Any:
            if self._watch is not None:
                self._watch.next_step(epoch_idx, interaction)
            return calculate_loss(interaction)

        return super()._train_epoch(train_data, epoch_idx, watched, show_progress)

    def _check_nan(self, loss: torch.Tensor) -> None:
        # RecBole stops at nan alone, with a traceback, and trains on at infinity.
        if self._watch is not None:
            self._watch.check(loss)
        else:
            super()._check_nan(loss)


class ResumableTrainer(RecBoleTrainer):
    """A :class:`RecBoleTrainer` that writes its state at the end of every epoch.

    RecBole's loop has no place to write one, so an epoch has ended, its validation and early
    stopping included, when the next one or nothing follows.
    """

    _resumed: dict[str, Any] | None = None
    _loaders: tuple[Any, ...] = ()

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the state that was resumed if one was."""
        # Each loader shuffles with a generator of its own, which goes on from epoch to epoch.
        self._loaders = tuple(loader for loader in (train_data, valid_data) if loader is not None)
        if self._resumed is not None:
            for loader, state in zip(self._loaders, self._resumed["loaders"], strict=True):
                loader.generator.set_state(state.cpu())
            set_random_state(self._resumed["random"])
        result = super().fit(train_data, valid_data, *args, **kwargs)
        self._write_state(max(self.train_loss_dict, default=-1))
        return result

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Go on from the last finished epoch in a run's folder, or start over if there is none.

        Raises:
            CheckpointError: the state there is damaged, or belongs to another model.
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
        if is_out_of_patience(self):
            self.epochs = self.start_epoch

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if epoch_idx > self.start_epoch:
            self._write_state(epoch_idx - 1)
        return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)

    def _write_state(self, epoch: int) -> None:
        if epoch < self.start_epoch:  # nothing was trained since, or ever
            return
        others = self.model.other_parameter().items()
        write_state(
            self,
            epoch,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            # A module's weights are among the model's already.
            other_parameter={k: v for k, v in others if not isinstance(v, torch.nn.Module)},
            loaders=[loader.generator.get_state() for loader in self._loaders],
        )

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if epoch < 0 and self.start_epoch > 0:
            return  # RecBole's loop has no epoch left, and would save the last weights as the best
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        with atomic_write(path) as aside:
            super()._save_checkpoint(epoch, verbose=False, saved_model_file=aside, **kwargs)
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")
