"""Interactions as arrays, with the steps of preprocessing: unique pairs, k-core, order."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recbole_idiomoe.data.amazon.reading import Review


@dataclass(frozen=True)
class Interactions:
    """Rows of ``(user, item, time)``, and the ids of users and items; 16 bytes for each row."""

    user: np.ndarray  # index into ``users``, int32, shape ``(n,)``
    item: np.ndarray  # index into ``items``, int32, shape ``(n,)``
    time: np.ndarray  # seconds since 1970, float64, shape ``(n,)``
    users: list[str]
    items: list[str]

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def collect(cls, reviews: Iterable[Review]) -> Interactions:
        """The interactions of ``reviews``, in their order."""
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        columns = array("i"), array("i"), array("d")
        for user, item, time in reviews:
            columns[0].append(users.setdefault(user, len(users)))
            columns[1].append(items.setdefault(item, len(items)))
            columns[2].append(time)
        user_column, item_column, time_column = map(np.asarray, columns)
        return cls(user_column, item_column, time_column, list(users), list(items))

    def each_pair_once(self) -> Interactions:
        """Keep the earliest interaction of each user and item, as in the benchmark of 2023.

        Of several at the same time, the first in the file is kept.
        """
        order = np.lexsort((self.time, self.item, self.user))
        user, item = self.user[order], self.item[order]
        repeated = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
        return self._rows(np.sort(np.delete(order, np.flatnonzero(repeated) + 1)))

    def k_core(self, k: int) -> Interactions:
        """The k-core: users and items with fewer than ``k`` rows are removed until none is left."""
        kept = np.arange(len(self))
        while True:
            user, item = self.user[kept], self.item[kept]
            enough = (np.bincount(user)[user] >= k) & (np.bincount(item)[item] >= k)
            if enough.all():
                return self._rows(kept)
            kept = kept[enough]

    def in_order(self) -> Interactions:
        """Rows by user, in the order of first appearance, then by time, then as in the file."""
        return self._rows(np.lexsort((self.time, self.user)))

    def _rows(self, rows: np.ndarray) -> Interactions:
        """The given rows, with only the users and items that they contain."""
        user, users = _renumbered(self.user[rows], self.users)
        item, items = _renumbered(self.item[rows], self.items)
        return Interactions(user, item, self.time[rows], users, items)


def _renumbered(values: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """``values`` renumbered without gaps, and the names of those that occur."""
    occurs = np.zeros(len(names), dtype=bool)
    occurs[values] = True
    numbers = np.cumsum(occurs, dtype=np.int32) - 1
    return numbers[values].astype(np.int32), list(itertools.compress(names, occurs))
