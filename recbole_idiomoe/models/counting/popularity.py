"""Popularity: what most users had."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction

from recbole_idiomoe.models.counting.untrained import UntrainedRecommender


class Popularity(UntrainedRecommender):
    """Every user gets the items with the most training interactions.

    RecBole's ``Pop`` under the protocol of sequential models: one last item per user, and
    training interactions alone are counted.
    """

    counts: torch.Tensor

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        counts = np.bincount(dataset.split_items(), minlength=self.n_items)
        self.register_buffer("counts", torch.from_numpy(counts).float())

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, shape ``(batch, item_num)``."""
        return self.counts.repeat(len(interaction[self.ITEM_SEQ]), 1)
