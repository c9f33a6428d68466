"""Training rows in which every position is supervised, for RecBole's own loaders and trainer."""

from __future__ import annotations

from typing import Any

from recbole.data.interaction import Interaction

from recbole_idiomoe.data.dataset import HistoryDataset


class WindowDataset(HistoryDataset):
    """A :class:`HistoryDataset` that trains on windows of histories instead of all their prefixes.

    A row of RecBole's holds a history and the one item after it. Of a user's training rows those
    stay whose histories, their items shifted by one and the row's own as targets, have every
    training target once: the user's last, the one ``MAX_ITEM_LIST_LENGTH`` before it, and so on.
    They are the windows of :meth:`HistoryDataset.training_windows`, but never cut by length in
    tokens. Validation and test keep RecBole's rows. All rows have the times of their histories
    too, ``timestamp_list`` beside ``item_id_list``.
    """

    def build(self) -> list[WindowDataset]:
        """Training, validation and test split."""
        train, *others = super().build()
        train.inter_feat = train.inter_feat[train.window_ends()]
        return [train, *others]

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Rows with their padded histories and the times of these, both (rows, max length)."""
        rows = super().__getitem__(index, join)
        times = getattr(self, f"{self.time_field}_list_field")
        rows.update(Interaction({times: self.before(rows, self.history_times)}))
        return rows
