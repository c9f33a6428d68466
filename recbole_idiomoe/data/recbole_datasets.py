"""RecBole's datasets for its own sequential models, ordered by the file's own times."""

from __future__ import annotations

from typing import Any

import numpy as np
from recbole.data import dataset as recbole
from recbole.data.interaction import Interaction

from recbole_idiomoe.data.dataset import HistoryDataset, item_list_field
from recbole_idiomoe.data.times import TimeOrdered


class SequentialDataset(TimeOrdered, recbole.SequentialDataset):  # type: ignore[misc]
    """RecBole's dataset of most sequential models."""


class DIENDataset(TimeOrdered, recbole.DIENDataset):  # type: ignore[misc]
    """RecBole's dataset of DIEN, with sampled negative histories."""


class GRU4RecKGDataset(TimeOrdered, recbole.GRU4RecKGDataset):  # type: ignore[misc]
    """RecBole's dataset of GRU4RecKG, with a knowledge graph."""


class KSRDataset(TimeOrdered, recbole.KSRDataset):  # type: ignore[misc]
    """RecBole's dataset of KSR, with a knowledge graph."""


class ReadyMadeDataset(HistoryDataset):
    """A ready-made split whose rows hold their histories, as in RecBole's own datasets."""

    def build(self) -> list[ReadyMadeDataset]:
        """Return the training, the validation and the test split."""
        splits: list[ReadyMadeDataset] = super().build()
        for split in splits:
            rows = HistoryDataset.__getitem__(split, np.arange(len(split)))
            split.inter_feat.update(
                Interaction({item_list_field(self): rows[item_list_field(self)]})
            )
        return splits

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Return rows as they are stored."""
        return recbole.SequentialDataset.__getitem__(self, index, join)
