"""Recommenders that are counted, not trained."""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType


class UntrainedRecommender(SequentialRecommender):
    """A model whose buffers are filled from the training split as it is built.

    So RecBole's ``ItemKNN`` and ``EASE`` are built too; its ``Pop`` counts in a loss of zeros. The
    second that it takes is no training time of the run.
    """

    input_type = InputType.POINTWISE

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the interactions' own items, shape ``(batch,)``."""
        items = interaction[self.ITEM_ID].unsqueeze(1)
        return self.full_sort_predict(interaction).gather(1, items).squeeze(1)
