"""Which items each user has seen before a target; the masks of all models are made from this."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset

from recbole_idiomoe.data.dataset import HistoryDataset, item_list_field

ROWS = 65_536
"""Rows of histories that are read together, to bound memory."""


class SeenItems:
    """Which items each user had in ``splits``, as one flat array with offsets."""

    def __init__(self, splits: Sequence[SequentialDataset]) -> None:
        # A pair is one number: sorting numbers is ten times as fast as sorting columns.
        self._item_num, self._user_num = splits[0].item_num, splits[0].user_num
        self._keep(np.concatenate([_pairs(split) for split in splits]))

    def with_split(self, split: SequentialDataset) -> SeenItems:
        """A copy that also knows the items of ``split``."""
        return self._with(_pairs(split))

    def with_pairs(self, users: np.ndarray, items: np.ndarray) -> SeenItems:
        """A copy that also knows the given pairs; ``users`` and ``items`` are ``(pairs,)``."""
        return self._with(users * self._item_num + items)

    def _with(self, pairs: np.ndarray) -> SeenItems:
        more = copy.copy(self)
        more._keep(np.concatenate((self._pairs, pairs)))
        return more

    def _keep(self, pairs: np.ndarray) -> None:
        self._pairs = pairs = _distinct(pairs)
        self.items = pairs % self._item_num
        self.offsets = np.searchsorted(pairs // self._item_num, np.arange(self._user_num + 1))

    def of(self, user: int) -> np.ndarray:
        """The sorted catalogue rows of the items that ``user`` had, each once."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """``np.unique(numbers)``, which is slower because it uses a hash table."""
    ordered = np.sort(numbers)
    distinct: np.ndarray = ordered[np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)]]
    return distinct


def _pairs(split: SequentialDataset) -> np.ndarray:
    """``user * item_num + item`` of all items in the rows of ``split``, with some repeats."""
    if isinstance(split, HistoryDataset):
        users, items = split.known_interactions()
        return users * split.item_num + items
    rows, found = split.inter_feat, []
    # A user's rows are prefixes of one history; repeats are removed block by block.
    for start in range(0, len(rows), ROWS):
        users, targets, histories = (
            rows[field][start : start + ROWS].numpy()
            for field in (split.uid_field, split.iid_field, item_list_field(split))
        )
        row, column = np.nonzero(histories)
        pairs = np.concatenate((users, users[row])) * split.item_num
        found.append(_distinct(pairs + np.concatenate((targets, histories[row, column]))))
    return np.concatenate(found)


class SeenItemMask:
    """The items to mask in a split: all that each user had before the target.

    The target itself is never masked, even if the user had it before; RecBole does the same for
    general recommenders.

    Args:
        seen: the items that users had in the splits before this one.
        split: the split; each user's rows are in the order of time.
    """

    def __init__(self, seen: SeenItems, split: SequentialDataset) -> None:
        rows = split.inter_feat
        self.users, targets = rows[split.uid_field].numpy(), rows[split.iid_field].numpy()
        # In a split by ratio a user has several rows, and has seen the targets of earlier rows.
        by_user = np.argsort(self.users, kind="stable")
        self.targets = targets[by_user]
        self.first = np.searchsorted(self.users[by_user], self.users)
        self.place = np.empty_like(by_user)
        self.place[by_user] = np.arange(len(by_user))
        # The first item of a user whose history begins in this split is no row's target.
        is_first = (self.place == self.first) & (rows[split.item_list_length_field] == 1).numpy()
        begins = np.flatnonzero(is_first)
        first_items = split[begins][item_list_field(split)][:, 0].numpy()
        self.seen = seen.with_pairs(self.users[begins], first_items)
        # The lists of a ready-made split may hold items that are no target anywhere.
        is_ready_made = isinstance(split, HistoryDataset) and split.is_ready_made
        self.histories = split.histories() if is_ready_made else None

    def pairs(self, index: Any, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What to mask in the rows ``index`` of the split.

        Args:
            index: row numbers of the split.
            targets: the targets of these rows, shape ``(rows,)``.

        Returns:
            Positions within ``index``, and the item to mask there, both of shape ``(pairs,)``.
        """
        seen = [self._before(row) for row in index]
        rows = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
        items = np.concatenate(seen) if seen else np.zeros(0, dtype=np.int64)
        keep = items != targets.numpy()[rows]
        return torch.from_numpy(rows[keep]), torch.from_numpy(items[keep])

    def _before(self, row: int) -> np.ndarray:
        """The items that the user of ``row`` had before its target."""
        own = self.targets[self.first[row] : self.place[row]]
        earlier = self.seen.of(self.users[row])
        if self.histories is not None:
            return np.unique(np.concatenate((earlier, own, self.histories[row])))
        return np.concatenate((earlier, own)) if len(own) else earlier
