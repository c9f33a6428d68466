"""The loader of a full ranking: candidates, users per batch, and the share of each process.

RecBole's full-sort loader names no history for sequential models, so an item that the user has
just had can be ranked first (``recbole/data/dataloader/general_dataloader.py:281``).

Several processes give exactly the numbers of one process: whole batches are dealt out to the
ranks, so that the scores of a user are the same to the last bit, and the results are put back into
the order of the loader before anything is averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from torch.utils.data import Sampler

from recbole_idiomoe.base import distributed
from recbole_idiomoe.protocol.seen_items import SeenItemMask

MAX_SCORES = 2**26
"""Scores held at once: 256 MiB in float32, and about four times as much to rank them."""

Masked = tuple[torch.Tensor, torch.Tensor]
EvalBatch = tuple[Any, Masked | None, torch.Tensor, torch.Tensor]


def users_at_once(item_num: int) -> int:
    """How many users can be scored together on ``item_num`` items; at least one."""
    return max(1, MAX_SCORES // item_num)


class LimitedUsers:
    """What makes a RecBole evaluation loader give at most :func:`users_at_once` users in a batch.

    RecBole holds the scores of a batch for the whole catalogue, so memory would grow with users
    times items. Each user is ranked alone, so the lists do not depend on the size of the batch.
    """

    step: int
    _dataset: Any

    def _init_batch_size_and_step(self) -> None:
        super()._init_batch_size_and_step()  # type: ignore[misc]
        self.step = min(self.step, users_at_once(self._dataset.item_num))


class SampledLoader(LimitedUsers, NegSampleEvalDataLoader):  # type: ignore[misc]
    """RecBole's loader of sampled candidates, with a limited number of users at once."""


class CandidateLoader(LimitedUsers, FullSortEvalDataLoader):  # type: ignore[misc]
    """RecBole's full-sort loader that also names the items that are masked for each user.

    With several processes, each one gets a share of the batches.

    Args:
        config: the config of the run.
        dataset: the split; each user's rows are in the order of time.
        sampler: RecBole's sampler, which a full ranking does not use.
    """

    def __init__(self, config: Config, dataset: Any, sampler: Any = None) -> None:
        self.seen: SeenItemMask | None = None
        self._left_out = torch.zeros(0, dtype=torch.int64)
        super().__init__(config, dataset, sampler)
        self.batch_sampler.sampler = OwnRows(self)

    def mask(self, seen: SeenItemMask) -> None:
        """From now on, mask the items that each user had before the target."""
        self.seen = seen

    def leave_out(self, items: np.ndarray) -> None:
        """From now on, mask ``items`` for every user, even if one of them is the target."""
        self._left_out = torch.from_numpy(items)

    def collate_fn(self, index: Any) -> EvalBatch:
        """The rows ``index`` of the split, as RecBole's trainer reads them.

        Returns:
            The users and histories; the rows and items to mask, or None; the rows of the targets;
            the items of the targets.
        """
        interaction, _, rows, targets = super().collate_fn(index)
        return interaction, self._masked(index, targets), rows, targets

    def _masked(self, index: Any, targets: torch.Tensor) -> Masked | None:
        parts = [] if self.seen is None else [self.seen.pairs(index, targets)]
        if count := len(self._left_out):
            users = torch.arange(len(targets)).repeat_interleave(count)
            parts.append((users, self._left_out.repeat(len(targets))))
        if len(parts) < 2:
            return parts[0] if parts else None
        users, items = (torch.cat(part) for part in zip(*parts, strict=True))
        return users, items


class OwnRows(Sampler):  # type: ignore[type-arg]
    """The rows that this process evaluates, computed again for each pass over the loader."""

    def __init__(self, loader: FullSortEvalDataLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[int]:
        return iter(own_rows(self._loader).tolist())

    def __len__(self) -> int:
        return len(own_rows(self._loader))


def own_rows(loader: Any) -> np.ndarray:
    """The rows of ``loader`` that this rank evaluates, in the order of the loader.

    Every rank gets the same number of batches, so some ranks repeat the first batch. Sampled
    candidates are drawn in an order that all ranks share, so every rank evaluates all their rows.
    """
    rows = np.arange(loader.sample_size)
    ranks = distributed.world_size()
    if ranks == 1 or not isinstance(loader, FullSortEvalDataLoader):
        return rows
    batches = np.split(rows, np.arange(loader.step, len(rows), loader.step))
    own = batches[distributed.rank() :: ranks]
    most = -(-len(batches) // ranks)
    # Repeats go in front: after the last batch, which may be short, they would be cut differently.
    return np.concatenate(batches[:1] * (most - len(own)) + own)


def in_order(values: torch.Tensor, loader: Any) -> torch.Tensor:
    """The ``values`` of all ranks in the order of ``loader``, with repeated rows left out.

    Args:
        values: the values of this rank, one for each row that it evaluated, shape ``(rows, ...)``.
        loader: the loader that was evaluated.

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
