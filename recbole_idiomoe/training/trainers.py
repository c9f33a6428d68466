"""Which trainer a model is trained with."""

from __future__ import annotations

from functools import cache
from typing import Any

from recbole.utils import ModelType
from recbole.utils import get_trainer as recbole_trainer

from recbole_idiomoe.models.counting.untrained import UntrainedRecommender
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, get_model
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
    return _before(ResumableTrainer, recbole_trainer(ModelType.SEQUENTIAL, name))


def get_stage_trainer(name: str) -> type[RecBoleTrainer]:
    """The trainer of one of RecBole's models or of a baseline as the first stage of a run.

    It does not write the state of the run, which belongs to the second stage.
    """
    return _before(RecBoleTrainer, recbole_trainer(ModelType.SEQUENTIAL, name))


@cache
def _before(ours: type[Any], recboles: type[Any]) -> type[Any]:
    """A subclass of both, with the methods of ``ours`` before those of ``recboles``."""
    return type(recboles.__name__, (ours, recboles), {})
