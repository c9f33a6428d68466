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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import calculate_valid_score

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.counting.untrained import UntrainedRecommender
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol.learning_curve import plain
from recbole_idiomoe.protocol.ranks import ranks_kept

logger = logging.getLogger(__name__)

WEIGHTS = tuple(step / 20 for step in range(21))
"""Weights of the counter that are tried; of equals, the smallest is taken."""


def evaluate_mix(
    trainer: Any,
    counter: UntrainedRecommender,
    valid_data: Any,
    test_data: Any,
    *,
    item_counts: np.ndarray,
    ranks: Path,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Choose a weight on ``valid_data``, then test the mix with it, and keep its ranks.

    Args:
        trainer: any of RecBole's or ours, whose best model is mixed; it stays as it was.
        counter: see :func:`load_counter`.
        item_counts: as :func:`~recbole_idiomoe.protocol.ranks.ranks_kept` wants them.
        ranks: the ``.npz`` file of the mix's ranks.

    Returns:
        What ``mix`` in a result says: ``with``, ``weight``, ``best_valid_result``, ``test_result``
        and ``eval_seconds``.
    """
    start = time.perf_counter()
    weight, valid_result = choose_weight(trainer, counter, valid_data, show_progress)
    with (
        _rescored(trainer, lambda _, mixture: mixture.at(weight), counter),
        ranks_kept(ranks, trainer, test_data, item_counts, valid_data),
    ):
        test = trainer.evaluate(test_data, load_best_model=False, show_progress=show_progress)
    mix = {
        "with": type(counter).__name__,
        "weight": weight,
        "best_valid_result": valid_result,
        "test_result": plain(test),
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


def choose_weight(
    trainer: Any, counter: UntrainedRecommender, valid_data: Any, show_progress: bool = False
) -> tuple[float, dict[str, float]]:
    """The weight of ``counter`` that validation favours, and all metrics of its mix there.

    One pass: the best model scores every user once. The metrics are RecBole's own.
    """
    collectors = {weight: _collector_like(trainer.eval_collector) for weight in WEIGHTS}
    for collector in collectors.values():
        collector.loader = valid_data  # of what one of ours brings together

    def collect(batch: tuple[Any, Any, Any, Any], mixture: Mixture) -> torch.Tensor:
        interaction, scores, *targets = batch
        for weight, collector in collectors.items():
            collector.eval_batch_collect(mixture.at(weight), interaction, *targets)
        return scores

    with _rescored(trainer, collect, counter):
        trainer.evaluate(valid_data, show_progress=show_progress)
    results = {}
    for weight, collector in collectors.items():
        collector.model_collect(trainer.model)
        results[weight] = plain(trainer.evaluator.evaluate(collector.get_data_struct()))
    sign = 1 if trainer.valid_metric_bigger else -1

    def value(weight: float) -> float:
        return sign * float(calculate_valid_score(results[weight], trainer.valid_metric))

    best = max(WEIGHTS, key=value)
    return best, results[best]


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


Rescore = Callable[[tuple[Any, Any, Any, Any], Mixture], torch.Tensor]


@contextmanager
def _rescored(trainer: Any, rescore: Rescore, counter: UntrainedRecommender) -> Iterator[None]:
    """Within the block, what ``trainer`` evaluates has the scores that ``rescore`` gives."""
    score_batch = trainer._full_sort_batch_eval
    are_counts = isinstance(trainer.model, UntrainedRecommender)

    def rescored(batch: Any) -> tuple[Interaction, torch.Tensor, torch.Tensor, torch.Tensor]:
        interaction, scores, rows, items = scored = score_batch(batch)
        counts = counter.full_sort_predict(interaction)
        return interaction, rescore(scored, Mixture(scores, counts, are_counts)), rows, items

    trainer._full_sort_batch_eval = rescored
    try:
        yield
    finally:
        del trainer._full_sort_batch_eval


def _collector_like(collector: Any) -> Any:
    """Another of RecBole's collectors that knows what this one does of the training data."""
    other = copy.copy(collector)
    other.data_struct = copy.deepcopy(collector.data_struct)
    return other
