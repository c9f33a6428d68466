"""How well new items are found: metrics of seen and of unseen test items apart.

A ranked list of K items holds at most ``floor(epsilon K)`` unseen ones (TIGER, section 4.3; the
paper's section B.6.2 has epsilon .1). Of more, the best stay, and items that were trained on move
up. So the rank of a target depends on K, and each K is measured on a list of its own. The metrics
are RecBole's own, so with epsilon 1 they equal those of its evaluation to the last digit.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import DataStruct

from recbole_idiomoe.protocol.evaluation import Observer, RankedBatch, plain_metrics
from recbole_idiomoe.protocol.sharing import in_order
from recbole_idiomoe.protocol.splits import Splits

logger = logging.getLogger(__name__)


class ColdStartSplit(Observer):
    """Measures seen and unseen targets apart, by the rule above.

    Args:
        config: of the run: ``topk``, ``metrics`` and ``cold_start_epsilon``.
        unseen: rows of the unseen items.

    Attributes:
        all_result: metrics of all targets by name, once the evaluation has finished.
    """

    def __init__(self, config: Config, unseen: np.ndarray) -> None:
        self.topk: list[int] = config["topk"]
        self.epsilon: float = config["cold_start_epsilon"]
        self.items = torch.from_numpy(unseen).to(config["device"])
        self.evaluator = Evaluator(config)
        self.all_result: dict[str, float] = {}

    def started(self, loader: Any) -> None:
        self._loader = loader
        self._hits: list[torch.Tensor] = []
        self._is_unseen: list[torch.Tensor] = []

    def ranked(self, batch: RankedBatch) -> None:
        targets = batch.targets.to(batch.scores.device)
        lists = [_under_rule(batch.scores, self.items, k, self.epsilon) for k in self.topk]
        by_list = [_positions(allowed, targets, max(self.topk)) for allowed in lists]
        self._hits.append(torch.stack(by_list, dim=1).cpu())
        self._is_unseen.append(torch.isin(targets, self.items).cpu())

    def finished(self) -> None:
        self._found, self._apart = (
            in_order(torch.cat(part), self._loader) for part in (self._hits, self._is_unseen)
        )
        self.all_result = self._metrics(self._found)

    def result(self, can_rank: bool) -> dict[str, Any]:
        """What ``cold_start`` in the result of a run says.

        Args:
            can_rank: whether the model can rank unseen items.

        Returns:
            ``items`` and ``unseen_targets``, how many there are, and the metrics of ``seen`` and
            of ``unseen`` targets, the latter None for a model that cannot rank them.
        """
        return {
            "items": len(self.items),
            "unseen_targets": int(self._apart.sum()),
            "seen": self._metrics(self._found[~self._apart]),
            "unseen": self._metrics(self._found[self._apart]) if can_rank else None,
        }

    def _metrics(self, hits: torch.Tensor) -> dict[str, float]:
        """RecBole's metrics of lists: ``hits`` is (n, len(topk), max(topk)), a list for each K."""
        by_list = {}
        for position, k in enumerate(self.topk):
            relevant = torch.ones(len(hits), 1, dtype=torch.int)
            struct = DataStruct()
            struct.set("rec.topk", torch.cat((hits[:, position].int(), relevant), dim=1))
            by_list[k] = plain_metrics(self.evaluator.evaluate(struct))
        names = by_list[self.topk[0]]
        return {name: by_list[int(name.partition("@")[2])][name] for name in names}


def evaluate_cold_start(
    trainer: Any, splits: Splits, *, load_best_model: bool = True, show_progress: bool = False
) -> tuple[dict[str, float], dict[str, Any]]:
    """Test a trained model under the rule.

    A model without a true ``ranks_unseen_items`` has no unseen items among its candidates.

    Args:
        trainer: of the model.
        splits: of the run.
        load_best_model: test the best epoch instead of the weights as they are.
        show_progress: show a progress bar.

    Returns:
        Metrics of all targets, and what ``cold_start`` in the result of a run says.
    """
    can_rank = bool(getattr(trainer.model, "ranks_unseen_items", False))
    if not can_rank:
        splits.test.leave_out(splits.unseen)
        name = trainer.config["model"]
        logger.info(f"{name} cannot rank unseen items: they are left out of its candidates")
    apart = ColdStartSplit(trainer.config, splits.unseen)
    trainer.evaluate(splits.test, load_best_model, None, show_progress, observers=[apart])
    rule = {
        "share": trainer.config["cold_start"],
        "epsilon": trainer.config["cold_start_epsilon"],
    }
    return apart.all_result, rule | apart.result(can_rank)


def _under_rule(scores: torch.Tensor, unseen: torch.Tensor, k: int, epsilon: float) -> torch.Tensor:
    """``scores`` (n, item_num) with -inf for unseen items that a list of ``k`` has no room for."""
    # A tenth has no exact binary form, and .29 * 100 is below 29.
    room = math.floor(epsilon * k + 1e-9)
    if room >= min(k, len(unseen)):
        return scores
    best, which = scores[:, unseen].topk(room, dim=1)
    return scores.index_fill(1, unseen, -torch.inf).scatter(1, unseen[which], best)


def _positions(scores: torch.Tensor, targets: torch.Tensor, width: int) -> torch.Tensor:
    """Where the targets (n,) are ranked: (n, width), True there, all False if nowhere.

    Ties fall as RecBole has them fall, which cuts its shorter lists from the longest.
    """
    best, listed = scores.topk(width, dim=1)
    # A short catalogue fills its lists with masked items.
    return (listed == targets[:, None]) & (best > -torch.inf)
