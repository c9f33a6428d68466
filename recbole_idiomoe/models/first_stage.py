"""Interfaces of the first of two training stages, which some models have.

A model with a first stage has it as its attribute ``first_stage``. The run passes a function that
trains, because models do not depend on trainers.
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
        """The folder of the run."""

    def fit(self, config: Any, model: Any, train_data: Any, file: Path | None = None) -> Any:
        """Train ``model`` with RecBole's loader ``train_data``, and return the trainer.

        Args:
            config: the configuration of the stage.
            file: the checkpoint of the best epoch on validation, which the model ends with; None:
                the last epoch counts, without validation.
        """


class FirstStage(Protocol):
    """The first stage of a model."""

    def is_needed(self, config: Any) -> bool:
        """Whether the settings require the stage."""

    def train(self, run: StageRun) -> None:
        """Train the stage, and change ``run.config`` to the second stage."""
