"""How well new items are found: the metrics of seen and of unseen test items, measured apart.

A ranked list of K items holds at most ``floor(epsilon K)`` unseen items (TIGER, section 4.3; the
paper's section B.6.2 uses epsilon 0.1). If there are more, the best ones stay, and items that were
trained on move up. The rank of a target thus depends on K, and each K is measured on a list of its
own. The metrics are RecBole's, so with epsilon 1 they equal its evaluation to the last digit.
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
from recbole_idiomoe.protocol.loader import in_order
from recbole_idiomoe.protocol.splits import Splits
from recbole_idiomoe.protocol.ties import MASKED, TieBreaker

logger = logging.getLogger(__name__)


class ColdStartSplit(Observer):
    """Measures seen and unseen targets apart, by the rule of this module.

    Args:
        config: the config of the run, with ``topk``, ``metrics`` and ``cold_start_epsilon``.
        unseen: catalogue rows of the unseen items, shape ``(items,)``.

    Attributes:
        all_result: metrics of all targets by name, once the evaluation has finished.
    """

    def __init__(self, config: Config, unseen: np.ndarray) -> None:
        self.topk: list[int] = config["topk"]
        self.epsilon: float = config["cold_start_epsilon"]
        self.items = torch.from_numpy(unseen).to(config["device"])
        self.evaluator = Evaluator(config)

    def started(self, loader: Any) -> None:
        self._loader, self._ties = loader, TieBreaker(loader)
        self._hits: list[torch.Tensor] = []
        self._is_unseen: list[torch.Tensor] = []

    def ranked(self, batch: RankedBatch) -> None:
        targets = batch.targets.to(batch.scores.device)
        keys = self._ties.keys(batch.scores)
        lists = (_limited(keys, self.items, k, self.epsilon) for k in self.topk)
        by_list = [_hits(limited, targets, max(self.topk)) for limited in lists]
        self._hits.append(torch.stack(by_list, dim=1).cpu())
        self._is_unseen.append(torch.isin(targets, self.items).cpu())

    def finished(self) -> None:
        self._found = in_order(torch.cat(self._hits), self._loader)
        self._apart = in_order(torch.cat(self._is_unseen), self._loader)
        self.all_result: dict[str, float] = self._metrics(self._found)

    def result(self, can_rank: bool) -> dict[str, Any]:
        """The entries of ``cold_start`` in the result of a run.

        Args:
            can_rank: whether the model can rank unseen items.

        Returns:
            The numbers of ``items`` and of ``unseen_targets``, and the metrics of the ``seen`` and
            the ``unseen`` targets; ``unseen`` is None if the model cannot rank them.
        """
        return {
            "items": len(self.items),
            "unseen_targets": int(self._apart.sum()),
            "seen": self._metrics(self._found[~self._apart]),
            "unseen": self._metrics(self._found[self._apart]) if can_rank else None,
        }

    def _metrics(self, hits: torch.Tensor) -> dict[str, float]:
        """RecBole's metrics of ``hits`` (n, len(topk), max(topk)), each K from its own list."""
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
    """Test a trained model by the rule of this module.

    Unseen items are no candidates of a model whose ``ranks_unseen_items`` is false or missing.

    Args:
        trainer: the trainer of the model.
        splits: the splits of the run.
        load_best_model: test the best epoch instead of the current weights.
        show_progress: show a progress bar.

    Returns:
        Metrics of all targets, and ``cold_start`` of the result of a run.
    """
    config = trainer.config
    can_rank = bool(getattr(trainer.model, "ranks_unseen_items", False))
    if not can_rank:
        splits.test.leave_out(splits.unseen)
        name = config["model"]
        logger.info(f"{name} cannot rank unseen items: they are left out of its candidates")
    apart = ColdStartSplit(config, splits.unseen)
    trainer.evaluate(splits.test, load_best_model, None, show_progress, observers=[apart])
    rule = {"share": config["cold_start"], "epsilon": config["cold_start_epsilon"]}
    return apart.all_result, rule | apart.result(can_rank)


def _limited(keys: torch.Tensor, unseen: torch.Tensor, k: int, epsilon: float) -> torch.Tensor:
    """``keys`` (n, item_num), masked for unseen items that a list of ``k`` has no room for."""
    # 0.29 * 100 is below 29 in floating point.
    room = math.floor(epsilon * k + 1e-9)
    if room >= min(k, len(unseen)):
        return keys
    best, which = keys[:, unseen].topk(room, dim=1)
    return keys.index_fill(1, unseen, MASKED).scatter(1, unseen[which], best)


def _hits(keys: torch.Tensor, targets: torch.Tensor, width: int) -> torch.Tensor:
    """Where the top ``width`` items are the targets (n,): booleans of shape (n, width)."""
    best, listed = keys.topk(width, dim=1)
    # In a small catalogue the lists are filled up with masked items.
    return (listed == targets[:, None]) & (best > MASKED)
