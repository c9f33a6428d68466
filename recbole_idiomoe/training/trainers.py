"""Which trainer a model is trained with."""

from __future__ import annotations

from functools import cache
from typing import Any

import recbole.trainer

from recbole_idiomoe.models.counting.model import UntrainedRecommender
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, MODELS, get_model, load_place
from recbole_idiomoe.training.observed import ObservedTrainer
from recbole_idiomoe.training.recbole_trainer import RecBoleTrainer, ResumableTrainer
from recbole_idiomoe.training.untrained_trainer import UntrainedTrainer


def get_trainer(name: str) -> type[ObservedTrainer]:
    """The trainer of model ``name``, which can resume a run.

    Raises:
        SettingError: no model has exactly this name, or RecBole's is not sequential.
    """
    model = get_model(name)
    if name in LANGUAGE_MODELS:
        # It imports transformers, seconds that other models need not wait.
        from recbole_idiomoe.training.trainer import IdiomoeTrainer

        return IdiomoeTrainer
    if issubclass(model, UntrainedRecommender):
        return UntrainedTrainer
    return _before(ResumableTrainer, _recbole_trainer(name))


def get_stage_trainer(name: str) -> type[RecBoleTrainer]:
    """The trainer of one of RecBole's models or of a baseline as the first stage of a run.

    It does not write the state of the run, which belongs to the second stage.
    """
    return _before(RecBoleTrainer, _recbole_trainer(name))


def _recbole_trainer(name: str) -> Any:
    """The trainer that was registered with the model, else the one that RecBole has for its class.

    RecBole finds a trainer by the name of the model; a model that derives from one of RecBole's
    has the trainer of that one.
    """
    if name in MODELS and (place := MODELS[name].trainer) is not None:
        return load_place(place)
    names = [f"{cls.__name__}Trainer" for cls in get_model(name).__mro__]
    found = [getattr(recbole.trainer, name) for name in names if hasattr(recbole.trainer, name)]
    return found[0] if found else recbole.trainer.Trainer


@cache
def _before(ours: type[Any], recboles: type[Any]) -> type[Any]:
    """A subclass of both, with the methods of ``ours`` before those of ``recboles``."""
    return type(recboles.__name__, (ours, recboles), {})
