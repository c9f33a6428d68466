"""Training rows with a target at every position, for RecBole's own loaders and trainer."""

from __future__ import annotations

from typing import Any

from recbole.data.interaction import Interaction

from recbole_idiomoe.data.dataset import HistoryDataset


class WindowDataset(HistoryDataset):
    """A :class:`HistoryDataset` that trains on windows of histories instead of all their prefixes.

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
        times = getattr(self, f"{self.time_field}_list_field")
        rows.update(Interaction({times: self.padded_histories(rows, self.history_times)}))
        return rows
