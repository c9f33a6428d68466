"""What the baselines that read item IDs share: every position predicts the item after it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch.nn import functional


class NextItemRecommender(SequentialRecommender):
    """A recommender of a state at each position, ranking items by products with it.

    It trains on the rows of a ``WindowDataset``, in which every training interaction but a
    user's first is a target once, and is evaluated on RecBole's own.
    """

    input_type = InputType.POINTWISE

    @abstractmethod
    def states(self, interaction: Interaction) -> torch.Tensor:
        """A state at each position of the histories, shape ``(rows, length, width)``.

        ``length`` is that of the longest history, see :meth:`histories`. Each state depends on
        nothing after it; those past a history's end are never read.
        """

    @abstractmethod
    def item_vectors(self) -> torch.Tensor:
        """What states are multiplied with to rank the items, shape ``(item_num, width)``."""

    @abstractmethod
    def item_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of states ``(n, width)`` before the items ``targets`` ``(n,)``."""

    def histories(self, interaction: Interaction) -> torch.Tensor:
        """Items ``(rows, length)``, oldest first, without the columns that are padding alone."""
        longest = int(interaction[self.ITEM_SEQ_LEN].max())
        items: torch.Tensor = interaction[self.ITEM_SEQ][:, :longest]
        return items

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean loss over all positions of all rows, a scalar."""
        items = self.histories(interaction)
        targets = next_items(items, interaction[self.ITEM_SEQ_LEN], interaction[self.POS_ITEM_ID])
        real = targets > 0
        return self.item_loss(self.states(interaction)[real], targets[real])

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, shape ``(batch, item_num)``."""
        last = self.gather_indexes(self.states(interaction), interaction[self.ITEM_SEQ_LEN] - 1)
        return last @ self.item_vectors().T

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the interactions' own items, shape ``(batch,)``."""
        items = interaction[self.ITEM_ID].unsqueeze(1)
        return self.full_sort_predict(interaction).gather(1, items).squeeze(1)


def next_items(items: torch.Tensor, lengths: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The item after each of ``items`` (rows, length); ``last`` (rows,) after the last one.

    Past a history's end it is 0, the padding item.
    """
    shifted = functional.pad(items[:, 1:], (0, 1))
    return shifted.scatter(1, lengths.unsqueeze(1) - 1, last.unsqueeze(1))


def sampled_softmax(
    states: torch.Tensor, targets: torch.Tensor, item_vectors: torch.Tensor, negatives: int
) -> torch.Tensor:
    """Mean cross entropy of each target among itself and items drawn uniformly for it alone.

    Every position has draws of its own, with replacement, from the whole catalogue; a draw that
    is the target does not count. All items being as likely, logits need no correction.

    Args:
        states: ``(n, width)``.
        targets: ``(n,)``.
        item_vectors: ``(item_num, width)``; row 0 is padding and never drawn.
        negatives: how many are drawn a position.
    """
    size = (len(targets), negatives)
    drawn = torch.randint(1, len(item_vectors), size, device=states.device)
    of_targets = (states * item_vectors[targets]).sum(dim=1, keepdim=True)
    if len(item_vectors) < negatives * states.shape[1]:  # all products take less room than rows
        of_drawn = (states @ item_vectors.T).gather(1, drawn)
    else:
        of_drawn = (item_vectors[drawn] @ states.unsqueeze(2)).squeeze(2)
    of_drawn = of_drawn.masked_fill(drawn == targets.unsqueeze(1), -torch.inf)
    logits = torch.cat((of_targets, of_drawn), dim=1)
    return functional.cross_entropy(logits, torch.zeros_like(targets))
