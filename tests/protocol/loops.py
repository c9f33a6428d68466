"""The same untrained model on the same data, in our evaluation loop and in RecBole's."""

from __future__ import annotations

from typing import Any

from recbole.data import data_preparation
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol.evaluation import Evaluation
from recbole_idiomoe.protocol.splits import split_dataset


def our_loop(model: str, dataset: str, settings: dict[str, Any]) -> Evaluation:
    """Our evaluation of the test split; its collector has read the training data."""
    config, loaded = _loaded(model, dataset, settings)
    splits = split_dataset(config, loaded)
    evaluation = Evaluation(_trainer(config, splits.train).model, splits.test, config)
    evaluation.collector.data_collect(splits.train)
    return evaluation


def recboles_loop(model: str, dataset: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """RecBole's trainer, whose collector has read the training data, and its test loader."""
    config, loaded = _loaded(model, dataset, settings)
    train, _, test = data_preparation(config, loaded)
    trainer = _trainer(config, train)
    trainer.eval_collector.data_collect(train)
    return trainer, test


def _loaded(model: str, dataset: str, settings: dict[str, Any]) -> tuple[RunConfig, Any]:
    config = RunConfig(model, dataset, settings=settings)
    init_seed(config["seed"], config["reproducibility"])
    return config, load_dataset(config)


def _trainer(config: RunConfig, train: Any) -> Any:
    init_seed(config["seed"], config["reproducibility"])
    return Trainer(config, get_model(config["model"])(config, train._dataset))
