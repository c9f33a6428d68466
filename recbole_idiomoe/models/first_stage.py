"""The first of two stages in which some models are trained.

A model has one as its attribute ``first_stage``. It says when the stage is needed and what it
trains; how a model is trained is handed in, so that models know nothing of trainers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class StageRun(Protocol):
    """The run that a first stage belongs to."""

    @property
    def config(self) -> Any:
        """The run's ``RunConfig``, which the stage sets to the second stage."""

    @property
    def train_data(self) -> Any:
        """RecBole's loader of the training split."""

    @property
    def folder(self) -> Path:
        """The folder that the run writes."""

    def fit(self, config: Any, model: Any, train_data: Any, file: Path | None = None) -> Any:
        """Train ``model``, which stops at a loss that is no number.

        Args:
            config: of the stage.
            model: a recommender that RecBole's trainers can train.
            train_data: RecBole's loader.
            file: validate every epoch, and leave the model with the weights of the best one,
                whose checkpoint this is; None: the last epoch counts, without validation.

        Returns:
            The trainer, after it has trained.
        """


class FirstStage(Protocol):
    """What a model's attribute ``first_stage`` does."""

    def is_needed(self, config: Any) -> bool:
        """Whether the settings ask for the stage."""

    def train(self, run: StageRun) -> None:
        """Train the stage, and set ``run.config`` to the second one."""
