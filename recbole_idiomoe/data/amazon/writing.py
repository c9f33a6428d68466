"""Conversion of dumps to atomic files, which ``properties/dataset/amazon-*.yaml`` describe."""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.base.files import atomic_new_folder
from recbole_idiomoe.data.amazon.reading import Dump, Item, Review

INTER_HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
ITEM_HEADER = "item_id:token\ttitle:token\tcategories:token_seq\tbrand:token\n"

CORE = 5
MAX_MALFORMED = 0.01

_ROWS_AT_ONCE = 1 << 16


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


@dataclass(frozen=True)
class Summary:
    """Counts of what was read, and of what is left after preprocessing."""

    dataset: str
    reviews: str
    metadata: str
    core: int
    lines: int
    malformed: dict[str, int]
    metadata_lines: int
    metadata_malformed: dict[str, int]
    repeated: int  # reviews of an item by a user who has already reviewed it
    users: int
    items: int
    interactions: int
    without_metadata: int  # counts of items; one without metadata has no title and no categories
    without_title: int
    without_categories: int

    def text(self) -> str:
        """The summary as text of several lines."""
        left_out = self.lines - sum(self.malformed.values()) - self.repeated - self.interactions
        return (
            f"{self.dataset}: {self.users:,} users, {self.items:,} items, "
            f"{self.interactions:,} interactions ({self.interactions / self.users:.2f} a user)\n"
            f"  reviews: {self.lines:,} lines of {self.reviews}; {_counted(self.malformed)}, "
            f"{self.repeated:,} repeated, {left_out:,} outside the {self.core}-core\n"
            f"  metadata: {self.metadata_lines:,} lines of {self.metadata}; "
            f"{_counted(self.metadata_malformed)}\n"
            f"  items without metadata {self.without_metadata:,}, without a title "
            f"{self.without_title:,}, without categories {self.without_categories:,}"
        )


def convert(
    reviews: Path, metadata: Path, folder: Path, core: int = CORE, limit: float = MAX_MALFORMED
) -> Summary:
    """Write ``folder/NAME.inter``, ``NAME.item`` and ``NAME.summary.json``; NAME is the folder's.

    Of several reviews of an item by a user, the earliest is kept; then the ``core``-core is taken.
    Every remaining item gets a row in ``.item``, with or without metadata, since RecBole drops the
    interactions of items without a row. Users are in the order of the dump, their interactions in
    the order of time, in seconds since 1970.

    Args:
        folder: the new folder, which appears once all files are written.
        core: fewest interactions of a user and of an item (paper, section B.3: 5).
        limit: largest share of malformed lines in either dump.

    Raises:
        DataError: ``folder`` has files, a dump cannot be read or has too many malformed lines, or
            no interaction is left.
        BrokenDump: a dump is truncated or damaged.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} holds files already; remove it, or give another name.")
    dump = Dump(reviews, limit)
    read = Interactions.collect(dump.reviews())
    once = read.each_pair_once()
    repeated = len(read) - len(once)
    del read
    kept = once.k_core(core).in_order()
    if not len(kept):
        raise DataError(
            f"{reviews}: no user has {core} interactions with items that {core} users have; "
            "lower --core, or give more reviews."
        )
    about = Dump(metadata, limit)
    described = _described(about, set(kept.items))
    summary = Summary(
        dataset=folder.name,
        reviews=reviews.name,
        metadata=metadata.name,
        core=core,
        lines=dump.lines,
        malformed=dict(dump.faults),
        metadata_lines=about.lines,
        metadata_malformed=dict(about.faults),
        repeated=repeated,
        users=len(kept.users),
        items=len(kept.items),
        interactions=len(kept),
        without_metadata=len(kept.items) - len(described),
        without_title=len(kept.items) - sum(bool(item.title) for item in described.values()),
        without_categories=len(kept.items) - sum(bool(i.categories) for i in described.values()),
    )
    _write(folder, kept, described, summary)
    return summary


def _described(dump: Dump, wanted: set[str]) -> dict[str, Item]:
    """The metadata of ``wanted`` items: the first row with a title of each, else its first row."""
    found: dict[str, Item] = {}
    for row in dump.items():
        if row.item in wanted and (row.item not in found or not found[row.item].title):
            found[row.item] = row
    return found


def _write(folder: Path, kept: Interactions, items: dict[str, Item], summary: Summary) -> None:
    name = folder.name
    try:
        with atomic_new_folder(folder) as temporary:
            with open(temporary / f"{name}.inter", "w", encoding="utf-8", newline="\n") as file:
                file.write(INTER_HEADER)
                file.writelines(_inter_lines(kept))
            with open(temporary / f"{name}.item", "w", encoding="utf-8", newline="\n") as file:
                file.write(ITEM_HEADER)
                for item in sorted(kept.items):
                    row = items.get(item, Item(item, "", [], ""))
                    file.write(f"{item}\t{row.title}\t{'|'.join(row.categories)}\t{row.brand}\n")
            with open(temporary / f"{name}.summary.json", "w", encoding="utf-8") as file:
                json.dump(asdict(summary), file, indent=2)
    except OSError as error:
        raise DataError(
            f"Cannot write {name} into {folder.parent} ({error.strerror or error}); free space "
            "there, or name another folder."
        ) from error


def _inter_lines(kept: Interactions) -> Iterator[str]:
    for start in range(0, len(kept), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        columns = (column[rows].tolist() for column in (kept.user, kept.item, kept.time))
        for user, item, time in zip(*columns, strict=True):
            yield f"{kept.users[user]}\t{kept.items[item]}\t{time:.15g}\n"


def _counted(faults: dict[str, int]) -> str:
    if not faults:
        return "none malformed"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in faults.items())
    return f"{sum(faults.values()):,} malformed ({reasons})"
