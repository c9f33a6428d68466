"""How many users are ranked at once, so that memory does not grow with catalogue times users.

RecBole's evaluation holds the scores of a batch of users for the whole catalogue, and its
collector holds as many marks of the targets. Only the head of each list is kept of both. Users
are ranked one by one, so the lists are the same however few users come together.
"""

from __future__ import annotations

from typing import Any

# Scores held at once, in elements: 256 MiB in float32, and as much again for the marks.
SCORES = 2**26


def users_at_once(item_num: int) -> int:
    """How many users have their scores of ``item_num`` items held together, at least one."""
    return max(1, SCORES // item_num)


def limit_users(loader: Any) -> None:
    """Make an evaluation loader give at most :func:`users_at_once` users in a batch.

    Where ``eval_batch_size`` gives fewer users already, nothing changes.
    """
    loader.step = min(loader.step, users_at_once(loader._dataset.item_num))
    # A DataLoader's own batch_size is fixed; its sampler is what cuts the batches.
    loader.batch_sampler.batch_size = loader.step
