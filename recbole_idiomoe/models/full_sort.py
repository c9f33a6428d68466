"""The common base of recommenders that score the whole catalogue."""

from __future__ import annotations

from abc import abstractmethod

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType


class FullSortRecommender(SequentialRecommender):
    """A sequential recommender that scores single items by scoring all of them."""

    input_type = InputType.POINTWISE

    @abstractmethod
    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, shape ``(batch, item_num)``."""

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the interactions' own items, shape ``(batch,)``."""
        scores = self.full_sort_predict(interaction)
        items = interaction[self.ITEM_ID].to(scores.device)
        return scores.gather(1, items.unsqueeze(1)).squeeze(1)
