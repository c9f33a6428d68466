"""A trained model mixed with a counter: linear interpolation of what each expects next.

A candidate's score is ``(1 - w) * p + w * c``: ``p`` the softmax of the model's scores, ``c`` the
counter's share of all its counts, both over the user's candidates alone, so after what RecBole's
trainer masks. The weight ``w`` is the one of :data:`WEIGHTS` that ``valid_metric`` on validation
favours; the test is then evaluated once. At 0 and 1 the mix is the model and the counter to the
last digit, ties included. Nothing is trained for it, and the model's own result does not change.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import calculate_valid_score

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.counting.model import UntrainedRecommender
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol.evaluation import Observer, RankedBatch, plain_metrics
from recbole_idiomoe.protocol.ranks import RankRecorder
from recbole_idiomoe.protocol.sharing import SharedCollector
from recbole_idiomoe.protocol.splits import Splits

logger = logging.getLogger(__name__)

WEIGHTS = tuple(step / 20 for step in range(21))
"""Weights of the counter that are tried; of equals, the smallest is taken."""


def evaluate_mix(
    trainer: Any,
    counter: UntrainedRecommender,
    splits: Splits,
    ranks: Path,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Choose a weight on validation, then test the mix with it, and keep its ranks.

    Args:
        trainer: any of RecBole's or ours, whose best model is mixed; it stays as it was.
        counter: see :func:`load_counter`.
        splits: of the run.
        ranks: the ``.npz`` file of the mix's ranks.

    Returns:
        What ``mix`` in a result says: ``with``, ``weight``, ``best_valid_result``, ``test_result``
        and ``eval_seconds``.
    """
    start = time.perf_counter()
    search = WeightSearch(trainer, counter)
    trainer.evaluate(splits.valid, show_progress=show_progress, observers=[search])
    weight, valid_result = search.best()
    test = trainer.evaluate(
        splits.test,
        load_best_model=False,
        show_progress=show_progress,
        observers=[RankRecorder(ranks, splits.popularity)],
        rescore=Mixer(trainer.model, counter, weight),
    )
    mix = {
        "with": type(counter).__name__,
        "weight": weight,
        "best_valid_result": valid_result,
        "test_result": test,
        "eval_seconds": round(time.perf_counter() - start, 2),
    }
    logger.info(f"mixed with {mix['with']}, weight {weight}: test: {mix['test_result']}")
    return mix


def load_counter(
    config: RunConfig, settings: Mapping[str, Any], dataset: Any
) -> UntrainedRecommender:
    """The counter that ``mix`` names, as it is when run beside the model with its own defaults.

    Args:
        config: of the model's run.
        settings: complete, as they were before the run.
        dataset: the run's.

    Raises:
        DataError: the counter's data number the items otherwise.
    """
    name, model, label = config["mix"], config["model"], config["dataset_label"]
    own = RunConfig(name, label, settings={**settings, "mix": None}, beside=[model])
    counted = load_dataset(own)
    field = counted.iid_field
    if not np.array_equal(counted.field2id_token[field], dataset.field2id_token[field]):
        raise DataError(f"mix={name}: it does not have {model}'s items of {label}; leave mix out.")
    counter: UntrainedRecommender = get_model(name)(own, counted.build()[0])
    return counter.to(config["device"]).eval()


class WeightSearch(Observer):
    """Measures the mix by every weight of :data:`WEIGHTS` in one pass of the model.

    Args:
        trainer: the model's; its metrics are RecBole's own.
        counter: what the model is mixed with.
    """

    def __init__(self, trainer: Any, counter: UntrainedRecommender) -> None:
        self.trainer, self.counter = trainer, counter
        self.are_counts = isinstance(trainer.model, UntrainedRecommender)
        self.collectors = {weight: _collector_like(trainer.eval_collector) for weight in WEIGHTS}

    def started(self, loader: Any) -> None:
        for collector in self.collectors.values():
            collector.loader = loader

    def ranked(self, batch: RankedBatch) -> None:
        counts = self.counter.full_sort_predict(batch.interaction)
        mixture = Mixture(batch.scores, counts, self.are_counts)
        for weight, collector in self.collectors.items():
            scores = mixture.at(weight)
            collector.eval_batch_collect(scores, batch.interaction, batch.rows, batch.targets)

    def best(self) -> tuple[float, dict[str, float]]:
        """The weight that ``valid_metric`` favours, and all metrics of its mix."""
        trainer, results = self.trainer, {}
        for weight, collector in self.collectors.items():
            collector.model_collect(trainer.model)
            results[weight] = plain_metrics(trainer.evaluator.evaluate(collector.get_data_struct()))
        sign = 1 if trainer.valid_metric_bigger else -1

        def value(weight: float) -> float:
            return sign * float(calculate_valid_score(results[weight], trainer.valid_metric))

        best = max(WEIGHTS, key=value)
        return best, results[best]


class Mixer:
    """Rescores the masked scores of a model by a mix of one weight.

    Args:
        model: whose scores they are.
        counter: what it is mixed with.
        weight: of the counter, 0 to 1.
    """

    def __init__(self, model: Any, counter: UntrainedRecommender, weight: float) -> None:
        self.counter, self.weight = counter, weight
        self.are_counts = isinstance(model, UntrainedRecommender)

    def __call__(self, interaction: Interaction, scores: torch.Tensor) -> torch.Tensor:
        counts = self.counter.full_sort_predict(interaction)
        return Mixture(scores, counts, self.are_counts).at(self.weight)


class Mixture:
    """Scores of a model and of a counter for the same users, to be mixed by any weight.

    Args:
        scores: the model's (n, item_num), -inf where an item is no candidate.
        counts: the counter's (n, item_num), none negative.
        are_counts: whether ``scores`` are counts too, which have shares and no softmax.
    """

    def __init__(self, scores: torch.Tensor, counts: torch.Tensor, are_counts: bool) -> None:
        masked = scores == -torch.inf
        self._scores, self._counts = scores, counts.masked_fill(masked, -torch.inf)
        expected = _shares(scores, masked) if are_counts else scores.softmax(dim=1)
        # What is masked stays behind candidates that neither expects.
        self._expected = expected.masked_fill(masked, -torch.inf)
        self._shares = _shares(counts, masked).masked_fill(masked, -torch.inf)

    def at(self, weight: float) -> torch.Tensor:
        """The mixed scores (n, item_num), the counter's with weight ``weight``, 0 to 1."""
        if weight in (0, 1):  # also, 0 times what is masked would be nan
            return self._counts if weight else self._scores
        return torch.add((1 - weight) * self._expected, self._shares, alpha=weight)


def _shares(counts: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Each row's ``counts`` by their sum, 0 where masked; all 0 where nothing was counted."""
    counts = counts.masked_fill(masked, 0)
    # Next to nothing for rows of zeros, whose sum has no inverse.
    tiny = torch.finfo(counts.dtype).tiny
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=tiny)


def _collector_like(collector: SharedCollector) -> SharedCollector:
    """Another collector that knows the same of the training data."""
    other = copy.copy(collector)
    other.data_struct = copy.deepcopy(collector.data_struct)
    return other
