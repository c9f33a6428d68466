"""Evaluation by several processes, with exactly the numbers of one.

The batches of users are dealt out to the ranks, each batch as it is in one process, so that the
scores of a user are the same to the last bit. What was collected of each user is brought together
in the order of the loader before anything is averaged. Batches that only keep all ranks at the
same number of passes are counted once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator.collector import Collector, DataStruct

from recbole_idiomoe.base import distributed

# What RecBole collects of every user; everything else is the same on every rank.
_OF_USERS = ("rec.topk", "rec.items", "rec.meanrank", "rec.score", "data.label")


def own_rows(loader: Any) -> np.ndarray:
    """The rows of ``loader`` that this rank evaluates, in its order.

    Every rank gets the same number of batches. Sampled candidates are drawn in an order that the
    ranks share, so every rank evaluates all rows of those.
    """
    rows = np.arange(loader.sample_size)
    ranks = distributed.world_size()
    if ranks == 1 or not isinstance(loader, FullSortEvalDataLoader):
        return rows
    batches = np.split(rows, np.arange(loader.step, len(rows), loader.step))
    own = batches[distributed.rank() :: ranks]
    most = -(-len(batches) // ranks)
    # In front: behind the last batch, which may be short, they would be cut at other places.
    return np.concatenate(batches[:1] * (most - len(own)) + own)


def in_order(values: torch.Tensor, loader: Any) -> torch.Tensor:
    """What all ranks found of the rows of ``loader``, in its order, each row once.

    Args:
        values: this rank's, one for each row that it evaluated, shape ``(rows, ...)``.

    Returns:
        In one process ``values`` itself; in several processes a tensor on the CPU.
    """
    if distributed.world_size() == 1 or not isinstance(loader, FullSortEvalDataLoader):
        return values
    parts = distributed.gathered((own_rows(loader), values.cpu()))
    rows = np.concatenate([rows for rows, _ in parts])
    every, first = np.unique(rows, return_index=True)
    assert len(every) == loader.sample_size
    return torch.cat([part for _, part in parts])[torch.from_numpy(first)]


class SharedCollector(Collector):  # type: ignore[misc]
    """RecBole's collector, which gives what all ranks have collected.

    Attributes:
        loader: the loader that is being evaluated.
    """

    loader: Any = None

    def newest_hits(self, count: int) -> torch.Tensor | None:
        """True where the top-k lists of the newest ``count`` users hold the target.

        Returns:
            Shape ``(count, k)``; None if no metric needs the lists.
        """
        if not self.register.need("rec.topk"):
            return None
        # The last column counts the targets.
        hits: torch.Tensor = self.data_struct.get("rec.topk")[-count:, :-1] > 0
        return hits

    def get_data_struct(self) -> DataStruct:
        struct = super().get_data_struct()
        for name in _OF_USERS:
            if name in struct:
                struct.set(name, in_order(struct.get(name), self.loader))
        return struct
