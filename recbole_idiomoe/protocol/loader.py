"""The loader of a full ranking, which says for each user which items are no candidates.

RecBole's full-sort loader names no history for sequential models, so an item that the user has
just had can be ranked first (``recbole/data/dataloader/general_dataloader.py:281``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from torch.utils.data import Sampler

from recbole_idiomoe.protocol.seen_items import SeenItemMask
from recbole_idiomoe.protocol.sharing import own_rows

Masked = tuple[torch.Tensor, torch.Tensor]
EvalBatch = tuple[Any, Masked | None, torch.Tensor, torch.Tensor]


class CandidateLoader(FullSortEvalDataLoader):  # type: ignore[misc]
    """RecBole's full-sort loader that also names the items that are masked for each user.

    Several processes each get a share of the batches.

    Args:
        config: of the run.
        dataset: the split, each user's rows in the order of time.
        sampler: RecBole's, which a full ranking does not use.
    """

    def __init__(self, config: Config, dataset: Any, sampler: Any = None) -> None:
        self.seen: SeenItemMask | None = None
        self._left_out = torch.zeros(0, dtype=torch.int64)
        super().__init__(config, dataset, sampler)
        self.batch_sampler.sampler = OwnRows(self)

    def mask(self, seen: SeenItemMask) -> None:
        """Mask from now on what each user had before."""
        self.seen = seen

    def leave_out(self, items: np.ndarray) -> None:
        """Mask from now on ``items`` for every user, even where they are the target."""
        self._left_out = torch.from_numpy(items)

    def collate_fn(self, index: Any) -> EvalBatch:
        """The rows ``index`` as RecBole's trainer reads them.

        Returns:
            Users and histories; rows and items of what is masked, or None; rows and items of the
            targets.
        """
        interaction, _, rows, targets = super().collate_fn(index)
        return interaction, self._masked(index, targets), rows, targets

    def _masked(self, index: Any, targets: torch.Tensor) -> Masked | None:
        parts = [] if self.seen is None else [self.seen.pairs(index, targets)]
        if count := len(self._left_out):
            users = torch.arange(len(targets)).repeat_interleave(count)
            parts.append((users, self._left_out.repeat(len(targets))))
        if not parts:
            return None
        users, items = (torch.cat(part) for part in zip(*parts, strict=True))
        return users, items


class OwnRows(Sampler):  # type: ignore[type-arg]
    """The rows of a loader that this process evaluates, asked anew for every pass."""

    def __init__(self, loader: FullSortEvalDataLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[int]:
        return iter(own_rows(self._loader).tolist())

    def __len__(self) -> int:
        return len(own_rows(self._loader))
