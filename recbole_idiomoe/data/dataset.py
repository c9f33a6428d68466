"""RecBole datasets that store each user's history once instead of every prefix of it.

RecBole's ``SequentialDataset`` turns a history of n items into n - 1 rows and copies the prefix
into each. Here a row holds the end and the length of its history, and the items are in one flat
array. The rows, targets, their order and the splits are the same as RecBole's. The padded
``item_id_list`` of a row is built on access.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from scipy.sparse import csr_array

from recbole_idiomoe.data.ragged import RaggedArray
from recbole_idiomoe.data.ready_split import (
    PARTS,
    Streams,
    check_entries,
    positions,
    streams_of_lists,
    streams_of_rows,
)
from recbole_idiomoe.data.times import TimeOrdered

HISTORY_END = "history_end"


def item_list_field(dataset: SequentialDataset) -> str:
    """The name of the field of histories, such as ``item_id_list``."""
    return str(dataset.iid_field + dataset.config["LIST_SUFFIX"])


class HistoryDataset(TimeOrdered, SequentialDataset):
    """RecBole's ``SequentialDataset`` with its prefixes as views of one array.

    It also reads splits that the user has made, which the setting ``benchmark_filename`` names. In
    these, each target has the history that the files give it, see
    :mod:`recbole_idiomoe.data.ready_split`.

    Attributes:
        history_users: the user of each interaction, ascending, shape ``(interactions,)``.
        history_items: the item of each interaction, of the same shape. The interactions of a user
            are in the order of time.
        history_times: the time of each interaction, float32 as in RecBole, of the same shape.
        history_streams: equal for interactions of one sequence, ascending, of the same shape. A
            user has one sequence, except in ready-made splits with lists.
        part_rows: number of rows of each part of a ready-made split, by name.
        has_lists: whether the files of a ready-made split give the histories as lists.
    """

    inter_feat: Any  # a pandas table when loaded, an Interaction after the split

    def __init__(self, config: Config) -> None:
        self.part_rows: dict[str, int] = {}
        self.has_lists = False
        self._streams: Streams | None = None
        super().__init__(config)

    @property
    def is_ready_made(self) -> bool:
        """Whether the user has made the split."""
        return self._streams is not None

    def _set_alias(self, alias_name: str, default_value: list[str | None]) -> None:
        """Number the items of ready-made histories as RecBole numbers those of targets."""
        if alias_name == "item_id" and item_list_field(self) in self.inter_feat:
            default_value = [*default_value, item_list_field(self)]
        super()._set_alias(alias_name, default_value)

    def _benchmark_presets(self) -> None:
        """Nothing, because histories are made in :meth:`data_augmentation`."""

    def _order_interactions(self) -> None:
        if self.benchmark_filename_list is None:
            super()._order_interactions()
            return
        table, lists = self.inter_feat, item_list_field(self)
        parts = np.repeat(np.arange(len(PARTS)), self.file_size_list)
        users, items = table[self.uid_field].to_numpy(), table[self.iid_field].to_numpy()
        times = None
        if self.time_field in table:
            self._convert_times()
            times = table[self.time_field].to_numpy()
        if lists in table:
            check_entries(self.field2id_token[self.iid_field], np.unique(items))
            streams = streams_of_lists(users, items, parts, times, list(table[lists]))
        else:
            streams = streams_of_rows(users, items, parts, times)
        self.has_lists = lists in table
        self._count_rows(streams)
        table = table.iloc[streams.rows].reset_index(drop=True)
        table[self.iid_field] = streams.items
        for field in self._given_lists(table):
            self._del_col(table, field)
        if times is None:
            kind = FeatureType.FLOAT, FeatureSource.INTERACTION, 1
            self.set_field_property(self.time_field, *kind)
            table[self.time_field] = positions(streams.numbers).astype(np.float64)
        self.inter_feat, self._streams = table, streams

    def _given_lists(self, table: pd.DataFrame) -> list[str]:
        """The columns of ``table`` that hold a list of another column's values."""
        suffix = self.config["LIST_SUFFIX"]
        return [f"{field}{suffix}" for field in table if f"{field}{suffix}" in table]

    def _count_rows(self, streams: Streams) -> None:
        for part, name in enumerate(PARTS):
            has_history = streams.lengths[streams.parts == part] > 0
            self.part_rows[name] = int(has_history.sum())
            # Without lists, a user's first training row is only the history of others.
            if part or self.has_lists:
                self._leave_out(f"{name} rows without a history", (~has_history).sum())

    def build(self) -> list[HistoryDataset]:
        """Return the training, the validation and the test split."""
        if self._streams is None:
            splits: list[HistoryDataset] = super().build()
            return splits
        self._change_feat_format()
        self.data_augmentation()
        self._drop_unused_col()
        parts = self._streams.parts[self.inter_feat[HISTORY_END].numpy()]
        rows = (np.flatnonzero(parts == part) for part in range(len(PARTS)))
        return [self.copy(_rows(self.inter_feat, chosen)) for chosen in rows]

    def data_augmentation(self) -> None:
        """Make the rows that RecBole's augmentation makes, without copying prefixes."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        if not self.is_ready_made:
            self.sort(by=[self.uid_field, self.time_field], ascending=True)
        self.history_users = self.inter_feat[self.uid_field].numpy()
        self.history_items = self.inter_feat[self.iid_field].numpy()
        self.history_times = self.inter_feat[self.time_field].numpy()
        if self._streams is None:
            self.history_streams = self.history_users
            length = positions(self.history_streams)
        else:
            self.history_streams, length = self._streams.numbers, self._streams.lengths
        targets = np.flatnonzero(length)
        length = np.minimum(length[targets], self.max_item_list_len)
        fields = {self.item_list_length_field: length, HISTORY_END: targets}
        self.inter_feat = _with_fields(_rows(self.inter_feat, targets), fields)

    def leave_one_out(self, group_by: str | None, leave_one_mode: str) -> list[HistoryDataset]:
        """Split the rows as RecBole does, into training, validation and test rows."""
        if group_by != self.uid_field or leave_one_mode != "valid_and_test":
            return super().leave_one_out(group_by, leave_one_mode)
        # Users in the order in which they appear, and each user's rows in their order.
        users, _ = pd.factorize(self.inter_feat[self.uid_field].numpy())
        order = np.argsort(users, kind="stable")
        users, position = users[order], np.arange(len(order))
        to_come = np.searchsorted(users, users, side="right") - position - 1
        before = position - np.searchsorted(users, users, side="left")
        # A user with two rows has a test row and no validation row; a single row is for training.
        tests = (to_come == 0) & (before >= 1)
        validates = (to_come == 1) & (before >= 1)
        self._drop_unused_col()
        parts = ~(tests | validates), validates, tests
        return [self.copy(_rows(self.inter_feat, order[part])) for part in parts]

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Return rows with padded histories, ``item_id_list`` of shape ``(rows, max length)``."""
        rows = super().__getitem__(index, join)
        histories = self.padded_histories(rows, self.history_items)
        return _with_fields(rows, {item_list_field(self): histories})

    def padded_histories(self, rows: Interaction, values: np.ndarray) -> np.ndarray:
        """The ``values``, one per interaction, in the histories of ``rows``, oldest first.

        The shape is ``(rows, max length)``, with zeros after the end of a history.
        """
        ends = np.atleast_1d(rows[HISTORY_END].numpy())
        lengths = np.atleast_1d(rows[self.item_list_length_field].numpy())
        offset = np.arange(self.max_item_list_len)
        inside = offset < lengths[:, None]
        where = np.where(inside, (ends - lengths)[:, None] + offset, 0)
        return np.where(inside, values[where], 0)

    def histories(self) -> RaggedArray:
        """The history of each row, oldest item first."""
        ends = self.inter_feat[HISTORY_END].numpy()
        begins = ends - self.inter_feat[self.item_list_length_field].numpy()
        return RaggedArray(self.history_items, begins, ends)

    def known_interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of all interactions in this split's histories and targets, each once."""
        inside = self._known()
        return self.history_users[inside], self.history_items[inside]

    def split_items(self) -> np.ndarray:
        """The items of all interactions in this split's histories and targets, each once."""
        return self.history_items[self._known()]

    def _known(self) -> np.ndarray:
        rows, size = self.histories(), len(self.history_items) + 1
        opened = np.bincount(rows.starts, minlength=size)
        opened -= np.bincount(rows.stops + 1, minlength=size)
        return np.flatnonzero(np.cumsum(opened[:-1]))

    def window_ends(self) -> torch.Tensor:
        """A mask of this split's rows that end a window of ``MAX_ITEM_LIST_LENGTH`` inputs.

        Counted back from the last row of a stream, it is the last row of every
        ``MAX_ITEM_LIST_LENGTH`` interactions.
        """
        ends = self.inter_feat[HISTORY_END].numpy()
        streams = self.history_streams[ends]
        last = np.zeros(streams.max(initial=0) + 1, dtype=ends.dtype)
        np.maximum.at(last, streams, ends)
        window = (last[streams] - ends) // self.max_item_list_len
        newest_first = np.lexsort((-ends, window, streams))
        is_end = np.zeros(len(ends), dtype=bool)
        keys = np.stack((streams, window))[:, newest_first]
        is_end[newest_first] = np.r_[True, (keys[:, 1:] != keys[:, :-1]).any(0)][: len(ends)]
        return torch.from_numpy(is_end)

    def training_windows(self, max_items: int, lengths: np.ndarray, room: int) -> RaggedArray:
        """Split this split's histories into windows of items, with every target in exactly one.

        A window of ``m + 1`` items holds ``m`` inputs and, shifted by one, ``m`` targets. The last
        window of a stream, which is a user's sequence, ends at its last target in this split, and
        every other one ends where the next begins. The first item of a stream is not a target, as
        in RecBole. In a ready-made split, all other items of a training row's list are targets.

        Args:
            max_items: most inputs in a window.
            lengths: number of tokens of each item, shape ``(item_num,)``.
            room: most tokens of a window's inputs; a window has at least one input in any case.

        Returns:
            Arrays of 2 to ``max_items + 1`` item rows, ordered by user, the newest window of a
            user first. They are views of ``history_items``, therefore the users of the windows
            are ``history_users[windows.starts]``.
        """
        rows = self.histories()
        in_order = np.argsort(rows.stops)
        streams = self.history_streams[rows.stops[in_order]]
        begins_stream = np.r_[True, streams[1:] != streams[:-1]][: len(rows)]
        first = rows.starts[in_order][begins_stream]
        last = rows.stops[in_order][np.r_[begins_stream[1:], True][: len(rows)]]
        tokens = np.r_[0, np.cumsum(lengths[self.history_items])]
        one_window = (last - first <= max_items) & (tokens[last] - tokens[first] <= room)
        bounds = [np.stack([first, last])[:, one_window]]
        for begin, end in zip(first[~one_window], last[~one_window], strict=True):
            while end > begin:
                inputs = self.history_items[max(end - max_items, begin) : end]
                newest_first = np.cumsum(lengths[inputs][::-1])
                input_num = max(1, int(np.searchsorted(newest_first, room, side="right")))
                bounds.append(np.array([[end - input_num], [end]]))
                end -= input_num
        first, last = np.concatenate(bounds, axis=1)
        order = np.lexsort((-first, self.history_users[first]))
        return RaggedArray(self.history_items, first[order], last[order] + 1)


class WindowDataset(HistoryDataset):
    """Training rows with a target at every position, for RecBole's own loaders and trainer.

    A row of RecBole holds a history and the item after it. A model that predicts at every position
    needs each target once, so only some of a user's training rows are kept: the last one, the one
    ``MAX_ITEM_LIST_LENGTH`` interactions before it, and so on. These are the windows of
    :meth:`HistoryDataset.training_windows` without a limit in tokens. Validation and test keep
    RecBole's rows. All rows also have ``timestamp_list``, the times of ``item_id_list``.
    """

    _item_counter: Counter[int] | None = None

    def build(self) -> list[WindowDataset]:
        """Return the training, the validation and the test split."""
        train, *others = super().build()
        train._item_counter = train.item_counter
        train.inter_feat = train.inter_feat[train.window_ends()]
        return [train, *others]

    @property
    def item_counter(self) -> Counter[int]:
        """How often each item is a target; in the training split also inside of windows.

        Metrics as AveragePopularity read it, and must have the same counts for every model.
        """
        counted: Counter[int] | None = self._item_counter
        return super().item_counter if counted is None else counted

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Return rows with padded histories and their times, both of shape (rows, max length)."""
        rows = super().__getitem__(index, join)
        times = self.padded_histories(rows, self.history_times)
        return _with_fields(rows, {self.time_field + self.config["LIST_SUFFIX"]: times})


def count_transitions(
    dataset: HistoryDataset, decays: np.ndarray, reverse_weight: float
) -> csr_array:
    """Count how often each item (column) is near each item (row), shape ``(item_num, item_num)``.

    Args:
        dataset: the training split, whose interactions are counted.
        decays: weight of a transition over 1, 2, ... steps forward, shape ``(most steps,)``.
        reverse_weight: weight of a step backward relative to the same step forward.
    """
    ends = dataset.inter_feat[HISTORY_END].numpy()
    lengths = dataset.inter_feat[dataset.item_list_length_field].numpy()
    items, shape = dataset.history_items, (dataset.item_num, dataset.item_num)
    counts = csr_array(shape)
    for step, decay in enumerate(decays, start=1):
        later = ends[lengths >= step]
        pairs = items[later - step], items[later]
        counts += csr_array((np.full(len(later), decay), pairs), shape)
    return counts + reverse_weight * counts.T


def popularity_damping(dataset: HistoryDataset, power: float) -> np.ndarray:
    """Factors that lower the scores of popular items, shape ``(item_num,)``.

    They are each item's number of interactions in ``dataset``, at least 1, to the power ``-power``.
    """
    popularity = np.bincount(dataset.split_items(), minlength=dataset.item_num)
    return np.maximum(popularity, 1.0) ** -power


def _rows(interactions: Interaction, index: np.ndarray) -> Interaction:
    """Return ``interactions[index]``, but without RecBole's detour through a Python list."""
    where = torch.from_numpy(index)
    return Interaction({name: interactions[name][where] for name in interactions})


def _with_fields(rows: Interaction, arrays: dict[str, np.ndarray]) -> Interaction:
    rows.update(Interaction({name: torch.from_numpy(values) for name, values in arrays.items()}))
    return rows
