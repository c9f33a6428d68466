"""Splits that the user has made: one ``.inter`` file each for training, validation and test.

A row of the files is a target. Its history is either given in the row, in a column of lists such as
``item_id_list``, or it is what the user has in the rows before it. Both are brought into one form
here: streams of interactions, in which the history of a target is what stands right before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recbole_idiomoe.base.errors import DataError

_SEPARATORS = ",;|"
PARTS = ("training", "validation", "test")


class Streams(NamedTuple):
    """Interactions of all users in flat arrays (n,), those of a user together."""

    rows: np.ndarray
    """The row of the files that an interaction is from; for an item that only lists name, the row
    with the first of these lists."""
    items: np.ndarray
    """The item of each interaction."""
    parts: np.ndarray
    """The index in :data:`PARTS` of a target; -1 for an item that only lists name."""
    lengths: np.ndarray
    """The number of interactions right before a target that are its history; 0 for other items."""
    numbers: np.ndarray
    """The number of an interaction's stream, ascending."""


def streams_of_rows(
    users: np.ndarray, items: np.ndarray, parts: np.ndarray, times: np.ndarray | None
) -> Streams:
    """Streams of rows without lists: one for each user.

    A user's training rows come first, then those of validation, then those of test, so that nothing
    is trained with a history from a later part. Within a part, rows are in the order of ``times``,
    or without them in the order of the file. All arguments have the shape ``(n,)``.
    """
    order = _in_order(users, parts, times)
    lengths = positions(users[order])
    return Streams(order, items[order], parts[order], lengths, np.cumsum(lengths == 0))


def streams_of_lists(
    users: np.ndarray,
    items: np.ndarray,
    parts: np.ndarray,
    times: np.ndarray | None,
    histories: Sequence[np.ndarray],
) -> Streams:
    """Streams of rows with lists, in which every target has exactly the history of its row.

    A row whose list goes on where the stream of the row before it ended is put into that stream, so
    that the prefixes of one history take no more room than the history. A list that is as long as
    the longest may have been cut, and then only its end must fit.

    Args:
        users, items, parts: of each row, shape ``(n,)``.
        times: of each row, shape ``(n,)``; None: rows are in order.
        histories: the list of each row, oldest item first.
    """
    longest = max(map(len, histories), default=0)
    found: list[tuple[int, int, int, int, int]] = []
    stream: list[int] = []
    user, number = -1, 0
    for row in _in_order(users, parts, times).tolist():
        history = histories[row].tolist()
        extends = history[: len(stream)] == stream
        is_cut = len(history) == longest and stream[-longest:] == history
        if users[row] != user or not (extends or is_cut):
            user, number, stream = users[row], number + 1, []
            extends = True
        added = history[len(stream) :] if extends else []
        found += ((row, item, -1, 0, number) for item in added)
        found.append((row, items[row], parts[row], len(history), number))
        stream += [*added, items[row]]
    return Streams(*np.array(found, dtype=np.int64).reshape(-1, 5).T)


def check_entries(names: np.ndarray, targets: np.ndarray) -> None:
    """Check that entries of lists were not read as one because of another separator.

    Args:
        names: the names of all items, those that only lists have included, shape ``(item_num,)``.
        targets: the numbers of the items that rows have as targets, shape ``(n,)``.

    Raises:
        DataError: an entry is no target, but targets stand in it between separators.
    """
    known = set(map(str, names[targets]))
    for name in map(str, names[1:]):
        for separator in _SEPARATORS:
            parts = name.split(separator)
            if name not in known and len(parts) > 1 and known.issuperset(parts):
                raise DataError(
                    f"the entry {name!r:.60} of a list is no item, but its parts are; set "
                    f"seq_separator to {separator!r}."
                )


def positions(groups: np.ndarray) -> np.ndarray:
    """The place of each element in its group, from 0; equal neighbours (n,) form a group."""
    place = np.arange(len(groups))
    is_first = np.r_[True, groups[1:] != groups[:-1]][: len(groups)]
    starts: np.ndarray = np.maximum.accumulate(np.where(is_first, place, 0))
    return place - starts


def _in_order(users: np.ndarray, parts: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    keys = (parts, users) if times is None else (times, parts, users)
    return np.lexsort(keys)
