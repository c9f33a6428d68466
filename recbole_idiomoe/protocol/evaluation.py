"""One evaluation: a model scores the users of a loader, and RecBole's metrics judge the lists.

Everything that a reported number depends on is called from :meth:`Evaluation.run`. The loader
says which items are candidates, RecBole's ``Collector`` and ``Evaluator`` make the metrics, and
:class:`Observer` objects record what else is wanted of the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import Collector, DataStruct
from recbole.utils import EvaluatorType, get_gpu_usage, set_color
from tqdm import tqdm

from recbole_idiomoe.base import distributed
from recbole_idiomoe.protocol.loader import in_order
from recbole_idiomoe.protocol.ties import TieBreaker, scores_alone

# RecBole collects these for each user; whatever else it collects is the same on every rank.
_COLLECTED_BY_USER = ("rec.topk", "rec.items", "rec.meanrank", "rec.score", "data.label")
_COUNTS = ("data.num_items", "data.num_users", "data.count_items", "data.count_users")

Rescore = Callable[[Interaction, torch.Tensor], torch.Tensor]
"""Turns the masked scores of a model into the scores to rank; both are ``(users, item_num)``."""


@dataclass(frozen=True)
class RankedBatch:
    """A batch of users whose items have been ranked."""

    interaction: Interaction
    """The users and their histories, one row each."""
    scores: torch.Tensor
    """The scores that are ranked, shape ``(users, item_num)``; -inf for items that are masked."""
    rows: torch.Tensor
    """The row of the user of each target, shape ``(targets,)``."""
    targets: torch.Tensor
    """The items to be found, shape ``(targets,)``."""


class Observer:
    """Is told about the steps of an evaluation. A subclass overrides the hooks that it needs."""

    def started(self, loader: Any) -> None:
        """The evaluation of ``loader`` begins."""

    def predicted(self, interaction: Interaction, scores: torch.Tensor) -> None:
        """The model gave ``scores`` for the rows of ``interaction``; no item is masked yet."""

    def ranked(self, batch: RankedBatch) -> None:
        """Items were masked, and RecBole's metrics have seen the batch."""

    def finished(self) -> None:
        """All batches have been seen. This is not called if the evaluation raised an error."""


class SharedCollector(Collector):  # type: ignore[misc]
    """RecBole's collector, which ranks ties at random and gives what all ranks have collected."""

    _loader: Any = None

    @property
    def loader(self) -> Any:
        """The loader that is being evaluated; setting it begins an evaluation."""
        return self._loader

    @loader.setter
    def loader(self, loader: Any) -> None:
        self._loader, self._ties = loader, TieBreaker(loader)

    def eval_batch_collect(
        self,
        scores_tensor: torch.Tensor,
        interaction: Interaction,
        positive_u: torch.Tensor,
        positive_i: torch.Tensor,
    ) -> None:
        ranked = scores_tensor
        if self.register.need("rec.meanrank"):
            ranked = self._ties.keys(scores_tensor)
        elif not self.register.need("rec.score"):  # some metrics are of the scores alone
            ranked = self._ties.break_in_lists(scores_tensor, max(self.topk))
        super().eval_batch_collect(ranked, interaction, positive_u, positive_i)

    def _average_rank(self, scores: torch.Tensor) -> torch.Tensor:
        # RecBole's GAUC gives ties their mean rank, so it must see them.
        return super()._average_rank(scores_alone(scores))

    def get_data_struct(self) -> DataStruct:
        # RecBole calls .cpu() on all that was collected (recbole/evaluator/collector.py:227), also
        # on the numbers that it counted in the training data, which are no tensors.
        counted = {name: self.data_struct.get(name) for name in _COUNTS if name in self.data_struct}
        for name in counted:
            del self.data_struct[name]
        struct = super().get_data_struct()
        for name, value in counted.items():
            self.data_struct.set(name, value)
            struct.set(name, value)
        for name in _COLLECTED_BY_USER:
            if name in struct:
                struct.set(name, in_order(struct.get(name), self.loader))
        return struct


class Evaluation:
    """An evaluation of ``model`` on ``loader``.

    Args:
        model: a recommender of RecBole or of this package; it is set to evaluation mode.
        loader: an evaluation loader of RecBole, with full or sampled candidates.
        config: the config of the run, with its metrics, device and ``eval_batch_size``.
        collector: a collector that has read the training data; None if no metric needs that data.
        observers: they are called in this order.
        rescore: replaces the masked scores before they are ranked; None keeps them.
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
        title = set_color("Evaluate   ", "pink")
        bar = tqdm(self.loader, ncols=100, desc=title, disable=not show_progress)
        for interaction, masked, rows, targets in bar:
            scores = self._scores(interaction, masked, rows)
            if self.rescore is not None:
                scores = self.rescore(interaction, scores)
            self.collector.eval_batch_collect(scores, interaction, rows, targets)
            batch = RankedBatch(interaction, scores, rows, targets)
            for observer in self.observers:
                observer.ranked(batch)
            if show_progress and self.device.type == "cuda":
                usage = "GPU RAM: " + get_gpu_usage(self.device)
                bar.set_postfix_str(set_color(usage, "yellow"))
        self.collector.model_collect(self.model)
        struct = self.collector.get_data_struct()
        # Early stopping must not depend on the last digit of another machine.
        result = distributed.from_main(lambda: plain_metrics(self.evaluator.evaluate(struct)))
        for observer in self.observers:
            observer.finished()
        return result

    def _scores(self, interaction: Interaction, masked: Any, rows: torch.Tensor) -> torch.Tensor:
        """Scores of the batch, as ``recbole/trainer/trainer.py:515-565`` makes them."""
        if self.is_full:
            scores = self._full_scores(interaction.to(self.device)).view(-1, self.item_num)
        else:
            scores = self._predicted(interaction)
        for observer in self.observers:
            observer.predicted(interaction, scores)
        if self.is_full:
            scores[:, 0] = -torch.inf  # the padding item
            if masked is not None:
                scores[masked] = -torch.inf
            return scores
        if not self.is_ranking:
            return scores
        # With sampled candidates, ``masked`` holds the row of each candidate's user.
        size = (int(rows[-1]) + 1, self.item_num)
        spread = torch.full(size, -torch.inf, device=self.device)
        spread[masked, interaction[self.item_field]] = scores
        return spread

    def _full_scores(self, interaction: Interaction) -> torch.Tensor:
        try:
            scores: torch.Tensor = self.model.full_sort_predict(interaction)
            return scores
        except NotImplementedError:  # the model only scores pairs of a user and an item
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


def plain_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as Python floats, which JSON can hold."""
    return {name: float(value) for name, value in result.items()}
