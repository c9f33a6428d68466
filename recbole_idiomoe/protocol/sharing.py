"""Evaluation by several processes, with the very numbers of one.

The batches of users are dealt out to the ranks, each as it is in one process, so that a user's
scores are the same to the last bit. What was collected of each user is brought together in the
loader's order before anything is averaged. Batches that are there to have all ranks do as many
passes are counted once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator.collector import Collector, DataStruct

from recbole_idiomoe.base import distributed

# What RecBole collects of every user; all else is the same on every rank.
_OF_USERS = ("rec.topk", "rec.items", "rec.meanrank", "rec.score", "data.label")


def own_rows(loader: Any) -> np.ndarray:
    """The rows of a loader that this rank evaluates, in its order: as many batches as any rank.

    Where candidates are sampled, in an order that the ranks share, it is all rows.
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


@contextmanager
def shared(loader: Any) -> Iterator[None]:
    """Inside, ``loader`` gives this rank's batches alone."""
    if distributed.world_size() == 1 or not isinstance(loader, FullSortEvalDataLoader):
        yield
        return
    batches = loader.batch_sampler
    every, batches.sampler = batches.sampler, own_rows(loader).tolist()
    try:
        yield
    finally:
        batches.sampler = every


def in_order(values: torch.Tensor, loader: Any) -> torch.Tensor:
    """What all ranks have of the rows of ``loader``, in its order, each row once.

    Args:
        values: this rank's, one for each row that it evaluated.

    Returns:
        In one process ``values`` itself, in several on the CPU.
    """
    if distributed.world_size() == 1 or not isinstance(loader, FullSortEvalDataLoader):
        return values
    parts = distributed.gathered((own_rows(loader), values.cpu()))
    rows = np.concatenate([rows for rows, _ in parts])
    every, first = np.unique(rows, return_index=True)
    assert len(every) == loader.sample_size
    return torch.cat([part for _, part in parts])[torch.from_numpy(first)]


class SharedCollector(Collector):  # type: ignore[misc]
    """RecBole's collector, that gives what all ranks have collected.

    Attributes:
        loader: of what is evaluated; the trainer sets it.
    """

    loader: Any = None

    def get_data_struct(self) -> DataStruct:
        struct = super().get_data_struct()
        for name in _OF_USERS:
            if name in struct:
                struct.set(name, in_order(struct.get(name), self.loader))
        return struct
