"""One evaluation: a model scores the users of a loader, and RecBole's metrics judge the lists.

Everything that a reported number depends on is called from :meth:`Evaluation.run`. The loader
says which items are candidates, RecBole's ``Collector`` and ``Evaluator`` make the metrics, and
:class:`Observer` objects record what else is wanted of the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator
from recbole.utils import EvaluatorType, get_gpu_usage, set_color
from tqdm import tqdm

from recbole_idiomoe.base import distributed
from recbole_idiomoe.protocol.sharing import SharedCollector

Rescore = Callable[[Interaction, torch.Tensor], torch.Tensor]
"""Makes the scores ``(users, item_num)`` that are ranked of those that the model gave."""


@dataclass(frozen=True)
class RankedBatch:
    """A batch of users whose items have been ranked."""

    interaction: Interaction
    """The users and their histories, one row each."""
    scores: torch.Tensor
    """What is ranked, shape ``(users, item_num)``: -inf where an item is no candidate."""
    rows: torch.Tensor
    """For each target, the row of its user, shape ``(targets,)``."""
    targets: torch.Tensor
    """The items to be found, shape ``(targets,)``."""
    hits: torch.Tensor | None
    """True where RecBole's top-k list holds its user's target, shape ``(users, k)``; None if no
    metric needs the list."""


class Observer:
    """Looks on at an evaluation. A subclass overrides the hooks that it needs."""

    def started(self, loader: Any) -> None:
        """The evaluation of ``loader`` begins."""

    def predicted(self, interaction: Interaction, scores: torch.Tensor) -> None:
        """The model gave ``scores`` of the rows of ``interaction``; none is masked yet."""

    def ranked(self, batch: RankedBatch) -> None:
        """Candidates were masked, and RecBole's metrics have seen the batch."""

    def finished(self) -> None:
        """All batches have been seen; nothing is called if the evaluation was broken off."""


class Evaluation:
    """An evaluation of ``model`` on ``loader``.

    Args:
        model: a recommender of RecBole's or ours; it is set to evaluation mode.
        loader: RecBole's of validation or test data, of full or sampled candidates.
        config: of the run: metrics, device and ``eval_batch_size``.
        collector: knows what metrics need of the training data; None: no metric needs it.
        observers: see :class:`Observer`; they are called in their order.
        rescore: replaces the masked scores before they are ranked; None: they are ranked.
    """

    def __init__(
        self,
        model: Any,
        loader: Any,
        config: Config,
        *,
        collector: SharedCollector | None = None,
        observers: Sequence[Observer] = (),
        rescore: Rescore | None = None,
    ) -> None:
        self.model, self.loader, self.observers = model, loader, observers
        self.device, self.batch_size = config["device"], config["eval_batch_size"]
        self.is_full = isinstance(loader, FullSortEvalDataLoader)
        self.is_ranking = config["eval_type"] == EvaluatorType.RANKING
        self.item_field, self.item_num = loader._dataset.iid_field, loader._dataset.item_num
        self.collector = collector or SharedCollector(config)
        self.evaluator = Evaluator(config)
        self.rescore = rescore

    @torch.no_grad()
    def run(self, show_progress: bool = False) -> dict[str, float]:
        """RecBole's metrics by name, the same numbers in every process that shares the work."""
        self.model.eval()
        self.collector.loader = self.loader
        for observer in self.observers:
            observer.started(self.loader)
        for interaction, masked, rows, targets in self._batches(show_progress):
            scores = self._scores(interaction, masked, rows)
            if self.rescore is not None:
                scores = self.rescore(interaction, scores)
            self.collector.eval_batch_collect(scores, interaction, rows, targets)
            hits = self.collector.newest_hits(len(scores))
            batch = RankedBatch(interaction, scores, rows, targets, hits)
            for observer in self.observers:
                observer.ranked(batch)
        self.collector.model_collect(self.model)
        struct = self.collector.get_data_struct()
        # Whether training stops early must not depend on the last digit of another machine.
        result = distributed.from_main(lambda: plain_metrics(self.evaluator.evaluate(struct)))
        for observer in self.observers:
            observer.finished()
        return result

    def _batches(self, show_progress: bool) -> Iterable[Any]:
        if not show_progress:
            yield from self.loader
            return
        bar = tqdm(self.loader, ncols=100, desc=set_color("Evaluate   ", "pink"))
        for batch in bar:
            yield batch
            if self.device.type == "cuda":
                usage = "GPU RAM: " + get_gpu_usage(self.device)
                bar.set_postfix_str(set_color(usage, "yellow"))

    def _scores(self, interaction: Interaction, masked: Any, rows: torch.Tensor) -> torch.Tensor:
        """Scores of the batch, as ``recbole/trainer/trainer.py:515-565`` makes them."""
        if self.is_full:
            scores = self._full_scores(interaction.to(self.device)).view(-1, self.item_num)
            self._tell_predicted(interaction, scores)
            scores[:, 0] = -torch.inf  # the padding item
            if masked is not None:
                scores[masked] = -torch.inf
            return scores
        found = self._predicted(interaction)
        self._tell_predicted(interaction, found)
        if not self.is_ranking:
            return found
        # Of sampled candidates ``masked`` is the row of each one's user.
        size = (int(rows[-1]) + 1, self.item_num)
        scores = torch.full(size, -torch.inf, device=self.device)
        scores[masked, interaction[self.item_field]] = found
        return scores

    def _full_scores(self, interaction: Interaction) -> torch.Tensor:
        try:
            scores: torch.Tensor = self.model.full_sort_predict(interaction)
            return scores
        except NotImplementedError:  # a model that only scores pairs of a user and an item
            pairs = interaction.repeat_interleave(self.item_num)
            pairs.update(self._item_features.repeat(len(interaction)))
            return self._predicted(pairs)

    @cached_property
    def _item_features(self) -> Interaction:
        return self.loader._dataset.get_item_feature().to(self.device)

    def _predicted(self, interaction: Interaction) -> torch.Tensor:
        """The model's scores of the pairs in ``interaction``, shape ``(pairs,)``."""
        starts = range(0, len(interaction), self.batch_size)
        parts = [interaction[start : start + self.batch_size] for start in starts]
        return torch.cat([self.model.predict(part.to(self.device)).reshape(-1) for part in parts])

    def _tell_predicted(self, interaction: Interaction, scores: torch.Tensor) -> None:
        for observer in self.observers:
            observer.predicted(interaction, scores)


def plain_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as numbers of Python's own, which JSON takes."""
    return {name: float(value) for name, value in result.items()}
