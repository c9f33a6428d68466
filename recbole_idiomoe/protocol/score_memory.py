"""How many users are ranked at once, so that memory does not grow with catalogue times users.

RecBole's evaluation holds the scores of a batch of users, whatever the catalogue, and its
collector as many marks of what was to be found; of both only the head of each list is kept.
Users are ranked one by one, so that the lists are the same however few come together.
"""

from __future__ import annotations

from typing import Any

# Scores held at once, in elements: 256 MiB in float32, and as much again for the marks.
SCORES = 2**26


def users_at_once(item_num: int) -> int:
    """How many users' scores of ``item_num`` items are held together: one user's at least."""
    return max(1, SCORES // item_num)


def bound_scores(loader: Any) -> None:
    """Have RecBole's evaluation loader, of whichever model, give no more users at once than that.

    Where ``eval_batch_size`` gives fewer already, nothing changes.
    """
    loader.step = min(loader.step, users_at_once(loader._dataset.item_num))
    # A DataLoader's own batch_size is fixed; its sampler is what cuts the batches.
    loader.batch_sampler.batch_size = loader.step
