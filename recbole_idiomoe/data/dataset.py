"""RecBole datasets that store each user's history once instead of every prefix of it.

RecBole's ``SequentialDataset`` turns a history of n items into n - 1 rows and copies the prefix
into each. Here a row holds the end and the length of its history, and the items are in one flat
array. The rows, targets, their order and the splits are the same as RecBole's. The padded
``item_id_list`` of a row is built on access.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.ragged import RaggedArray

HISTORY_END = "history_end"


class HistoryDataset(SequentialDataset):
    """RecBole's ``SequentialDataset`` with its prefixes as views of one array.

    Attributes:
        history_users: the user of each interaction, ascending, shape ``(interactions,)``.
        history_items: the item of each interaction, in time order per user, of the same shape.
        history_times: the time of each interaction, float32 as in RecBole, of the same shape.

    Raises:
        SettingError: the setting ``benchmark_filename`` is given.
    """

    inter_feat: Any  # a pandas table when loaded, an Interaction after the split

    def __init__(self, config: Config) -> None:
        if config["benchmark_filename"] is not None:
            raise SettingError(
                "benchmark_filename names files that are split already; "
                f"{config['model']} needs one .inter file and eval_args.split."
            )
        super().__init__(config)

    def data_augmentation(self) -> None:
        """Make the rows that RecBole's augmentation makes, without copying prefixes."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)

        users = self.history_users = self.inter_feat[self.uid_field].numpy()
        self.history_items = self.inter_feat[self.iid_field].numpy()
        self.history_times = self.inter_feat[self.time_field].numpy()
        position = np.arange(len(users))
        is_first = np.r_[True, users[1:] != users[:-1]] if len(users) else np.zeros(0, dtype=bool)
        first = np.maximum.accumulate(np.where(is_first, position, 0))
        targets = position[~is_first]
        length = np.minimum(targets - first[targets], self.max_item_list_len)

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
        return _with_fields(rows, {self.item_id_list_field: histories})

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

    def known_interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of all interactions in this split's histories and targets, each once."""
        ends = self.inter_feat[HISTORY_END].numpy()
        begins = ends - self.inter_feat[self.item_list_length_field].numpy()
        size = len(self.history_items) + 1
        opened = np.bincount(begins, minlength=size) - np.bincount(ends + 1, minlength=size)
        inside = np.flatnonzero(np.cumsum(opened[:-1]))
        return self.history_users[inside], self.history_items[inside]

    def split_items(self) -> np.ndarray:
        """The items of this split's targets and of the interactions just before targets.

        Each interaction counts once. In the training split, these are all its interactions.
        """
        ends = self.inter_feat[HISTORY_END].numpy()
        return self.history_items[np.union1d(ends - 1, ends)]

    def window_ends(self) -> torch.Tensor:
        """A mask of this split's rows that end a window of ``MAX_ITEM_LIST_LENGTH`` inputs."""
        ends = self.inter_feat[HISTORY_END].numpy()
        users = self.inter_feat[self.uid_field].numpy()
        last = np.zeros(self.user_num, dtype=ends.dtype)
        np.maximum.at(last, users, ends)
        return torch.from_numpy((last[users] - ends) % self.max_item_list_len == 0)

    def training_windows(self, max_items: int, lengths: np.ndarray, room: int) -> RaggedArray:
        """Split this split's histories into windows of items, with every target in exactly one.

        A window of ``m + 1`` items holds ``m`` inputs and, shifted by one, ``m`` targets. A user's
        last window ends at the user's last target in this split, and every other one ends where
        the next begins. A user's first item is not a target, as in RecBole.

        Args:
            max_items: most inputs in a window.
            lengths: number of tokens of each item, shape ``(item_num,)``.
            room: most tokens of a window's inputs; a window has at least one input in any case.

        Returns:
            Arrays of 2 to ``max_items + 1`` item rows, ordered by user, the newest window of a
            user first. They are views of ``history_items``, therefore the users of the windows
            are ``history_users[windows.starts]``.
        """
        ends = np.sort(self.inter_feat[HISTORY_END].numpy())
        users = self.history_users[ends]
        begins_user = np.r_[True, users[1:] != users[:-1]][: len(ends)]
        first = ends[begins_user] - 1
        last = ends[np.r_[begins_user[1:], True][: len(ends)]]
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

    def build(self) -> list[WindowDataset]:
        """Return the training, the validation and the test split."""
        train, *others = super().build()
        train.inter_feat = train.inter_feat[train.window_ends()]
        return [train, *others]

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Return rows with padded histories and their times, both of shape (rows, max length)."""
        rows = super().__getitem__(index, join)
        times = self.padded_histories(rows, self.history_times)
        return _with_fields(rows, {getattr(self, f"{self.time_field}_list_field"): times})


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
