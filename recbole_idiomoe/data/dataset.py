"""A RecBole dataset that keeps one history per user instead of every prefix of it.

RecBole's ``SequentialDataset`` turns a history of n items into n - 1 rows and copies the
prefix into each. Here a row keeps two numbers, where its history ends and how long it is,
and the items stay in one flat array. Rows, targets and order are RecBole's own, so RecBole's
split of them is too; the padded ``item_id_list`` of a row is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_idiomoe.errors import SettingError

HISTORY_END = "history_end"


class HistoryDataset(SequentialDataset):
    """RecBole's ``SequentialDataset`` with its prefixes as views of one array.

    Attributes:
        history_items: every interaction's item, grouped by user and in time order, shape
            ``(interactions,)``.
        history_times: when they were, shape ``(interactions,)``, as RecBole reads them: float32.
    """

    history_items: np.ndarray
    history_times: np.ndarray
    inter_feat: Any  # a table when loaded, an Interaction once split

    def __init__(self, config: Config) -> None:
        if config["benchmark_filename"] is not None:
            raise SettingError(
                "benchmark_filename names files that are split already; "
                f"{config['model']} needs one .inter file and eval_args.split."
            )
        super().__init__(config)

    def data_augmentation(self) -> None:
        """The rows that RecBole's augmentation makes, without the copied prefixes."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)

        users = self.inter_feat[self.uid_field].numpy()
        self.history_items = self.inter_feat[self.iid_field].numpy()
        self.history_times = self.inter_feat[self.time_field].numpy()
        position = np.arange(len(users))
        is_first = np.r_[True, users[1:] != users[:-1]] if len(users) else np.zeros(0, dtype=bool)
        first = np.maximum.accumulate(np.where(is_first, position, 0))
        targets = position[~is_first]
        length = np.minimum(targets - first[targets], self.max_item_list_len)

        rows = self.inter_feat[targets]
        rows.update(
            Interaction(
                {
                    self.item_list_length_field: torch.from_numpy(length),
                    HISTORY_END: torch.from_numpy(targets),
                }
            )
        )
        self.inter_feat = rows

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Rows with their padded histories, ``item_id_list`` of shape ``(rows, max length)``."""
        rows = super().__getitem__(index, join)
        histories = self.before(rows, self.history_items)
        rows.update(Interaction({self.item_id_list_field: histories}))
        return rows

    def before(self, rows: Interaction, values: np.ndarray) -> torch.Tensor:
        """What ``values``, one for each of ``history_items``, are in the histories of ``rows``.

        Returns:
            Shape ``(rows, max length)``, oldest first, zero after a history's end.
        """
        ends = np.atleast_1d(rows[HISTORY_END].numpy())
        lengths = np.atleast_1d(rows[self.item_list_length_field].numpy())
        offset = np.arange(self.max_item_list_len)
        inside = offset < lengths[:, None]
        where = np.where(inside, (ends - lengths)[:, None] + offset, 0)
        return torch.from_numpy(np.where(inside, values[where], 0))

    def split_items(self) -> np.ndarray:
        """The items of this split's interactions: of the training split, its users' first too."""
        ends = self.inter_feat[HISTORY_END].numpy()
        return self.history_items[np.union1d(ends - 1, ends)]

    def window_ends(self) -> torch.Tensor:
        """Which rows of this split end a window of ``MAX_ITEM_LIST_LENGTH`` inputs, a mask."""
        ends = self.inter_feat[HISTORY_END].numpy()
        users = self.inter_feat[self.uid_field].numpy()
        last = np.zeros(self.user_num, dtype=ends.dtype)
        np.maximum.at(last, users, ends)
        return torch.from_numpy((last[users] - ends) % self.max_item_list_len == 0)

    def training_windows(self, max_items: int, lengths: np.ndarray, room: int) -> list[np.ndarray]:
        """This split's interactions as windows of items, every target in exactly one.

        A window of ``m + 1`` items holds ``m`` inputs and, shifted by one, ``m`` targets; the
        last window of a user ends at the user's last target in this split, and each earlier one
        ends where the next begins. Only the users' first items are no targets, as in RecBole.

        Args:
            max_items: most inputs in a window.
            lengths: (item_num,), tokens of each item.
            room: most tokens of the inputs of a window; one item fits in any case.

        Returns:
            Arrays of at least two and at most ``max_items + 1`` item rows.
        """
        bounds = self._window_bounds(max_items, lengths, room)
        return [self.history_items[first : last + 1] for _, first, last in bounds]

    def training_window_users(self, max_items: int, lengths: np.ndarray, room: int) -> list[int]:
        """The user row of each of :meth:`training_windows`, which has the same arguments."""
        return [user for user, _, _ in self._window_bounds(max_items, lengths, room)]

    def _window_bounds(
        self, max_items: int, lengths: np.ndarray, room: int
    ) -> Iterator[tuple[int, int, int]]:
        """User, and where the first and the last item stand, of each training window."""
        ends = self.inter_feat[HISTORY_END].numpy()
        users = self.inter_feat[self.uid_field].numpy()
        order = np.argsort(ends)
        ends, users = ends[order], users[order]
        starts_user = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
        for begin, stop in zip(starts_user, np.r_[starts_user[1:], len(ends)], strict=True):
            first, last = ends[begin] - 1, ends[stop - 1]
            while last > first:
                inputs = self.history_items[max(last - max_items, first) : last]
                newest_first = np.cumsum(lengths[inputs][::-1])
                count = max(1, int(np.searchsorted(newest_first, room, side="right")))
                yield int(users[begin]), last - count, last
                last -= count
