"""The first of two stages, for the models that have one; see :mod:`models.first_stage`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.models.registry import get_first_stage
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.training.trainers import get_stage_trainer


@dataclass(frozen=True)
class Stage:
    """A run before its second stage: what a first stage is given.

    Attributes:
        config: of the run.
        train_data: RecBole's loader of the training split.
        valid_data: of the validation split.
        folder: the run's.
        clock: of the run; validation counts as ``evaluate``.
    """

    config: RunConfig
    train_data: Any
    valid_data: Any
    folder: Path
    clock: Clock

    def fit(self, config: Any, model: Any, train_data: Any, file: Path | None = None) -> Any:
        """See :meth:`recbole_idiomoe.models.first_stage.StageRun.fit`."""
        trainer = get_stage_trainer(config["model"])(config, model.to(config["device"]))
        dataset = self.train_data._dataset
        if file is None:
            trainer.watch_loss(self.folder, dataset)
            trainer.fit(train_data, show_progress=config["show_progress"])
            return trainer
        file.parent.mkdir(parents=True, exist_ok=True)
        trainer.join_run(file, dataset, self.clock)
        trainer.fit(train_data, self.valid_data, show_progress=config["show_progress"])
        trainer.load_best_model()
        return trainer


def has_first_stage(config: RunConfig) -> bool:
    """Whether :func:`run_first_stage` trains anything for this model and its settings."""
    stage = get_first_stage(config["model"])
    return stage is not None and stage.is_needed(config)


def run_first_stage(
    config: RunConfig, train_data: Any, valid_data: Any, folder: Path, clock: Clock
) -> None:
    """Run the first stage of a model that has one, and set ``config`` to the second."""
    if has_first_stage(config):
        get_first_stage(config["model"]).train(Stage(config, train_data, valid_data, folder, clock))
