"""How well new items are found: metrics of seen and of unseen test items apart.

A ranked list of K items holds at most ``floor(epsilon K)`` unseen ones (TIGER, section 4.3; the
paper's section B.6.2 has epsilon .1): of more, the best stay and items that were trained on move
up. So a target's rank depends on K, and each K is measured on a list of its own. The metrics are
RecBole's own, so with epsilon 1 they are those of its evaluation to the last digit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct

from recbole_idiomoe.protocol.learning_curve import plain
from recbole_idiomoe.protocol.seen_items import EvalBatch
from recbole_idiomoe.protocol.sharing import in_order

logger = logging.getLogger(__name__)


def leave_out_items(loader: Any, items: np.ndarray) -> None:
    """Take ``items`` out of the candidates of a full-sort loader, targets included."""
    loader.collate_fn = _LeftOut(loader.collate_fn, items)


class _LeftOut:
    """A full-sort loader's ``collate_fn`` that has RecBole's trainer mask items for every user."""

    def __init__(self, collate_fn: Callable[[Any], EvalBatch], items: np.ndarray) -> None:
        self.collate_fn = collate_fn
        self.items = torch.from_numpy(items)

    def __call__(self, index: Any) -> EvalBatch:
        interaction, masked, positive_u, positive_i = self.collate_fn(index)
        count = len(positive_u)
        rows = torch.arange(count).repeat_interleave(len(self.items))
        items = self.items.repeat(count)
        if masked is not None:
            rows, items = torch.cat((masked[0], rows)), torch.cat((masked[1], items))
        return interaction, (rows, items), positive_u, positive_i


def evaluate_apart(
    trainer: Any,
    test_data: Any,
    unseen: np.ndarray,
    epsilon: float,
    show_progress: bool = False,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Test a trained model under the rule.

    A model without a true ``ranks_unseen_items`` has no unseen items among its candidates.

    Args:
        trainer: any of RecBole's or ours; the best model is loaded as ``evaluate`` does.
        unseen: rows of the unseen items.
        epsilon: largest share of unseen items in a list, 0 to 1.

    Returns:
        Metrics of all targets, and what ``cold_start`` in a result says besides the settings:
        ``items``, ``unseen_targets``, and metrics of ``seen`` targets and of ``unseen`` ones,
        these None for a model that cannot rank them.
    """
    can_rank = bool(getattr(trainer.model, "ranks_unseen_items", False))
    if not can_rank:
        leave_out_items(test_data, unseen)
        name = trainer.config["model"]
        logger.info(f"{name} cannot rank unseen items: they are left out of its candidates")
    topk = trainer.config["topk"]
    items = torch.from_numpy(unseen).to(trainer.device)
    hits: list[torch.Tensor] = []
    is_unseen: list[torch.Tensor] = []
    score_batch = trainer._full_sort_batch_eval

    def follow(batch: EvalBatch) -> Any:
        scored = score_batch(batch)
        _, scores, _, targets = scored
        targets = targets.to(scores.device)
        lists = [_under_rule(scores, items, k, epsilon) for k in topk]
        by_list = [_positions(allowed, targets, max(topk)) for allowed in lists]
        hits.append(torch.stack(by_list, dim=1).cpu())
        is_unseen.append(torch.isin(targets, items).cpu())
        return scored

    trainer._full_sort_batch_eval = follow
    try:
        trainer.evaluate(test_data, show_progress=show_progress)
    finally:
        del trainer._full_sort_batch_eval
    found, apart = (in_order(torch.cat(part), test_data) for part in (hits, is_unseen))
    parts = {
        name: _metrics(trainer, found[chosen], topk)
        for name, chosen in (("all", slice(None)), ("seen", ~apart), ("unseen", apart))
    }
    return parts["all"], {
        "items": len(unseen),
        "unseen_targets": int(apart.sum()),
        "seen": parts["seen"],
        "unseen": parts["unseen"] if can_rank else None,
    }


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
    # A short catalogue fills its lists with what is masked.
    return (listed == targets[:, None]) & (best > -torch.inf)


def _metrics(trainer: Any, hits: torch.Tensor, topk: list[int]) -> dict[str, float]:
    """RecBole's metrics of the lists ``hits`` (n, len(topk), max(topk)), each K's of its list."""
    by_list = {}
    for position, k in enumerate(topk):
        relevant = torch.ones(len(hits), 1, dtype=torch.int)
        struct = DataStruct()
        struct.set("rec.topk", torch.cat((hits[:, position].int(), relevant), dim=1))
        by_list[k] = plain(trainer.evaluator.evaluate(struct))
    return {name: by_list[int(name.partition("@")[2])][name] for name in by_list[topk[0]]}
