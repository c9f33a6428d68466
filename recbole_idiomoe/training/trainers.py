"""Which trainer a model, or the first of its two stages, is trained with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import recbole.trainer

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.models import registry
from recbole_idiomoe.models.counting.model import UntrainedRecommender
from recbole_idiomoe.models.first_stage import FirstStage
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.training.observed import ObservedTrainer
from recbole_idiomoe.training.recbole_trainer import (
    RecBoleTrainer,
    ResumableTrainer,
    UntrainedTrainer,
)


def get_trainer(name: str) -> type[ObservedTrainer]:
    """The trainer of model ``name``, which can resume a run.

    Raises:
        SettingError: no sequential model has exactly this name.
    """
    model = registry.get_model(name)
    if name in registry.LANGUAGE_MODELS:
        # Imports transformers, which takes seconds that other models need not wait.
        from recbole_idiomoe.training.trainer import IdiomoeTrainer

        return IdiomoeTrainer
    if issubclass(model, UntrainedRecommender):
        return UntrainedTrainer
    return _combined(ResumableTrainer, _recbole_trainer(name))


def first_stage(config: RunConfig) -> FirstStage | None:
    """The first stage that the model of ``config`` needs with its settings, if any."""
    stage: FirstStage | None = registry.get_first_stage(config["model"])
    return stage if stage is not None and stage.is_needed(config) else None


@dataclass(frozen=True)
class Stage:
    """The :class:`~recbole_idiomoe.models.first_stage.StageRun` that a first stage is given.

    Attributes:
        config: the config of the run.
        train_data: RecBole's loader of the training split.
        valid_data: RecBole's loader of the validation split.
        folder: the folder of the run.
        clock: the clock of the run.
    """

    config: RunConfig
    train_data: Any
    valid_data: Any
    folder: Path
    clock: Clock

    def fit(self, config: Any, model: Any, train_data: Any, file: Path | None = None) -> Any:
        """See :meth:`recbole_idiomoe.models.first_stage.StageRun.fit`."""
        # Not a ResumableTrainer: the state of the run belongs to the second stage.
        trainer_class = _combined(RecBoleTrainer, _recbole_trainer(config["model"]))
        trainer = trainer_class(config, model.to(config["device"]))
        if file is None:
            trainer.fit(train_data, show_progress=config["show_progress"])
            return trainer
        file.parent.mkdir(parents=True, exist_ok=True)
        trainer.join_run(file, self.train_data._dataset, self.clock)
        trainer.fit(train_data, self.valid_data, show_progress=config["show_progress"])
        trainer.load_best_model()
        return trainer


def _recbole_trainer(name: str) -> Any:
    """The trainer registered with the model, else RecBole's for its class or a base class.

    RecBole finds a trainer by the name of the model's class.
    """
    if name in registry.MODELS and (place := registry.MODELS[name].trainer) is not None:
        return registry.load_place(place)
    names = [f"{cls.__name__}Trainer" for cls in registry.get_model(name).__mro__]
    found = [getattr(recbole.trainer, name) for name in names if hasattr(recbole.trainer, name)]
    return found[0] if found else recbole.trainer.Trainer


@cache
def _combined(ours: type[Any], recboles: type[Any]) -> type[Any]:
    """A subclass of both, with the methods of ``ours`` before those of ``recboles``."""
    return type(recboles.__name__, (ours, recboles), {})
