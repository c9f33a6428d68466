"""What all trainers here add to RecBole's: one evaluation, observers and a learning curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from recbole.config import Config
from recbole.trainer import Trainer

from recbole_idiomoe.base.errors import CheckpointError, DataError, IdiomoeError, error_line
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.protocol.evaluation import (
    Evaluation,
    Observer,
    Rescore,
    SharedCollector,
    plain_metrics,
)
from recbole_idiomoe.protocol.finite_scores import FiniteScores


class ObservedTrainer(Trainer):  # type: ignore[misc]
    """RecBole's ``Trainer``, evaluated by :class:`Evaluation`.

    Attributes:
        clock: adds up the seconds of the evaluations as ``evaluate``.
        learning_curve: one entry per validation, with ``epoch`` from 1, ``train_loss``, and
            ``valid``, the value of ``valid_metric``.
        observers: the observers of every evaluation.
    """

    def __init__(self, config: Config, model: Any) -> None:
        try:
            super().__init__(config, model)
        except Exception as error:
            # Its classes of errors cannot be named here, since it need not be installed.
            if not (config["log_wandb"] and type(error).__module__.startswith("wandb.")):
                raise
            reason = error_line(error).removesuffix(".")
            raise IdiomoeError(
                f"wandb cannot start: {reason}; log in with wandb login, set "
                "WANDB_MODE=offline, or leave log_wandb out."
            ) from error
        self.eval_collector = SharedCollector(config)
        self.clock = Clock()
        self.learning_curve: list[dict[str, float]] = []
        self.observers: list[Observer] = []

    def join_run(self, file: Path, dataset: Any, clock: Clock) -> None:
        """Become the trainer of a run.

        Args:
            file: the checkpoint of the best epoch, in the folder of the run.
            dataset: the training split, which knows the ids of the users.
            clock: the clock of the run.
        """
        self.saved_model_file = str(file)
        self.clock = clock
        self.observers = [FiniteScores(self.config["model"], dataset)]

    @property
    def folder(self) -> Path:
        """The folder that the run writes."""
        return Path(self.saved_model_file).parent

    @property
    def is_out_of_patience(self) -> bool:
        """Whether early stopping has ended the training, maybe in an earlier process of the run."""
        return bool(self.cur_step > self.stopping_step)

    def load_best_model(self, file: str | Path | None = None) -> None:
        """Load the best epoch of the training.

        Args:
            file: the checkpoint to load; None: ``saved_model_file``.

        Raises:
            CheckpointError: the file is damaged or pickled.
        """
        path = file or self.saved_model_file
        try:
            checkpoint = torch.load(path, map_location=self.device, weights_only=True)
        except UnpicklingError as error:
            raise CheckpointError(f"{path} is damaged or pickled; train the model anew.") from error
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.load_other_parameter(checkpoint.get("other_parameter"))
        self.logger.info(f"Loading model structure and parameters from {path}")

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | Path | None = None,
        show_progress: bool = False,
        observers: Sequence[Observer] = (),
        rescore: Rescore | None = None,
    ) -> dict[str, float] | None:
        """The metrics of the model on ``eval_data`` by name, as RecBole's ``Trainer`` gives them.

        Args:
            eval_data: the loader of validation or test data; None: nothing is evaluated.
            load_best_model: evaluate the best epoch instead of the current weights.
            model_file: the checkpoint of the best epoch; None: ``saved_model_file``.
            show_progress: show a progress bar.
            observers: observers of this evaluation, beside those of every evaluation.
            rescore: replaces the masked scores before they are ranked, see :class:`Evaluation`.

        Raises:
            IdiomoeError: the model scored an item nan, or the checkpoint cannot be loaded.
        """
        if not eval_data:
            return None
        if load_best_model:
            self.load_best_model(model_file)
        evaluation = Evaluation(
            self.model,
            eval_data,
            self.config,
            collector=self.eval_collector,
            observers=[*self.observers, *observers],
            rescore=rescore,
        )
        with self.clock.timing("evaluate"):
            result = evaluation.run(show_progress)
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float]]:
        score, result = super()._valid_epoch(*args, **kwargs)
        if math.isnan(score):  # no epoch would be better than another, and none kept
            raise DataError(
                f"{self.config['valid_metric']} of the validation split is not a number: "
                f"{plain_metrics(result)}; take another valid_metric, or more data."
            )
        if losses := self.train_loss_dict:
            epoch = max(losses)
            point = {"epoch": epoch + 1, "train_loss": float(losses[epoch]), "valid": float(score)}
            self.learning_curve.append(point)
        return score, result
