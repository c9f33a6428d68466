"""A trained model mixed with a counter: linear interpolation of their next-item distributions.

A candidate's score is ``(1 - w) * p + w * c``: ``p`` is the softmax of the model's scores and
``c`` the counter's count divided by the sum of its counts, both over the user's candidates that are
not masked. The weight ``w`` is the one of :data:`WEIGHTS` with the best ``valid_metric`` on
validation; the test is then evaluated once. At 0 and 1 the mix is the model and the counter to the
last digit, ties included. Nothing is trained, and the model's own result does not change.
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
from recbole_idiomoe.protocol.splits import Splits

logger = logging.getLogger(__name__)

WEIGHTS = tuple(step / 20 for step in range(21))
"""Weights of the counter that are tried; among equally good ones the smallest is taken."""


def evaluate_mix(
    trainer: Any,
    counter: UntrainedRecommender,
    splits: Splits,
    ranks: Path,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Choose a weight on validation, test the mix with this weight, and save the ranks.

    Args:
        trainer: the trainer of the model; its best epoch is mixed, without being changed.
        counter: the counter, from :func:`load_counter`.
        splits: the splits of the run.
        ranks: the ``.npz`` file to write the ranks of the mix to.
        show_progress: show progress bars.

    Returns:
        ``mix`` of the result of a run: ``with``, ``weight``, ``best_valid_result``,
        ``test_result`` and ``eval_seconds``.
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
        rescore=lambda interaction, scores: search.mixture(interaction, scores).at(weight),
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
    """The counter that the setting ``mix`` names, with the defaults that it has in its own run.

    Args:
        config: the config of the model's run.
        settings: the complete settings of the run, as they were before it started.
        dataset: the data set of the run.

    Raises:
        DataError: the counter's data set numbers the items differently.
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
    """Measures the mix with every weight of :data:`WEIGHTS` in one pass of the model.

    Args:
        trainer: the trainer of the model, which has RecBole's metrics.
        counter: what the model is mixed with.
    """

    def __init__(self, trainer: Any, counter: UntrainedRecommender) -> None:
        self.trainer, self.counter = trainer, counter
        self.are_counts = isinstance(trainer.model, UntrainedRecommender)
        # Copies have read the training data too, and collect the validation data separately.
        self.collectors = {weight: copy.copy(trainer.eval_collector) for weight in WEIGHTS}
        for collector in self.collectors.values():
            collector.data_struct = copy.deepcopy(collector.data_struct)

    def started(self, loader: Any) -> None:
        for collector in self.collectors.values():
            collector.loader = loader

    def ranked(self, batch: RankedBatch) -> None:
        mixture = self.mixture(batch.interaction, batch.scores)
        for weight, collector in self.collectors.items():
            scores = mixture.at(weight)
            collector.eval_batch_collect(scores, batch.interaction, batch.rows, batch.targets)

    def mixture(self, interaction: Interaction, scores: torch.Tensor) -> Mixture:
        """The mixture of the model's masked ``scores`` (users, item_num) with the counter's."""
        return Mixture(scores, self.counter.full_sort_predict(interaction), self.are_counts)

    def best(self) -> tuple[float, dict[str, float]]:
        """The weight with the best ``valid_metric``, and all metrics of its mix."""
        trainer, results = self.trainer, {}
        for weight, collector in self.collectors.items():
            collector.model_collect(trainer.model)
            results[weight] = plain_metrics(trainer.evaluator.evaluate(collector.get_data_struct()))
        sign = 1 if trainer.valid_metric_bigger else -1

        def value(weight: float) -> float:
            return sign * float(calculate_valid_score(results[weight], trainer.valid_metric))

        best = max(WEIGHTS, key=value)
        return best, results[best]


class Mixture:
    """Scores of a model and of a counter for the same users, which any weight can mix.

    Args:
        scores: the model's scores (n, item_num), -inf where an item is masked.
        counts: the counter's counts (n, item_num), none of them negative.
        are_counts: whether ``scores`` are counts too, which are normalised by their sum.
    """

    def __init__(self, scores: torch.Tensor, counts: torch.Tensor, are_counts: bool) -> None:
        masked = scores == -torch.inf
        self._scores, self._counts = scores, counts.masked_fill(masked, -torch.inf)
        model_shares = _shares(scores, masked) if are_counts else scores.softmax(dim=1)
        # Masked items must rank behind candidates that have the share 0 in both.
        self._model_shares = model_shares.masked_fill(masked, -torch.inf)
        self._shares = _shares(counts, masked).masked_fill(masked, -torch.inf)

    def at(self, weight: float) -> torch.Tensor:
        """The mixed scores (n, item_num), with ``weight`` (0 to 1) for the counter."""
        if weight in (0, 1):  # 0 times the -inf of a masked item would be nan
            return self._counts if weight else self._scores
        return torch.add((1 - weight) * self._model_shares, self._shares, alpha=weight)


def _shares(counts: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """``counts`` divided by the sum of their row; 0 where masked, and in rows without counts."""
    counts = counts.masked_fill(masked, 0)
    tiny = torch.finfo(counts.dtype).tiny  # avoids a division by 0
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=tiny)
