"""The common base of baselines that read item IDs and predict the next item at each position."""

from __future__ import annotations

from abc import abstractmethod

import torch
from recbole.data.interaction import Interaction
from torch.nn import functional

from recbole_idiomoe.models.full_sort import FullSortRecommender


class NextItemRecommender(FullSortRecommender):
    """A recommender with a state at each position, whose products with item vectors rank items.

    It trains on the rows of a ``WindowDataset``, in which every training interaction except a
    user's first is a target once. It is evaluated on RecBole's own rows.
    """

    @abstractmethod
    def states(self, interaction: Interaction) -> torch.Tensor:
        """A state at each position of :meth:`histories`, shape ``(rows, length, width)``.

        A state depends on nothing after it. States past a history's end are never read.
        """

    @abstractmethod
    def item_vectors(self) -> torch.Tensor:
        """The vectors whose products with states rank the items, shape ``(item_num, width)``."""

    @abstractmethod
    def item_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of states ``(n, width)`` that predict the items ``targets`` ``(n,)``."""

    def histories(self, interaction: Interaction) -> torch.Tensor:
        """Items ``(rows, length)``, oldest first, as long as the longest history."""
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
        last = self.gather_indexes(self.states(interaction), interaction[self.ITEM_SEQ_LEN] - 1)
        return last @ self.item_vectors().T


def next_items(items: torch.Tensor, lengths: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The item after each of ``items`` (rows, length), the padding item 0 past a history's end.

    ``last`` (rows,) holds the items after the histories.
    """
    shifted = functional.pad(items[:, 1:], (0, 1))
    return shifted.scatter(1, lengths.unsqueeze(1) - 1, last.unsqueeze(1))


def sampled_softmax(
    states: torch.Tensor, targets: torch.Tensor, item_vectors: torch.Tensor, negatives: int
) -> torch.Tensor:
    """Mean cross entropy of each target against uniformly drawn items.

    Items are drawn for each position, with replacement, from the whole catalogue. A draw that
    equals the target does not count. Logits need no correction, because all items are equally
    likely to be drawn.

    Args:
        states: ``(n, width)``.
        targets: ``(n,)``.
        item_vectors: ``(item_num, width)``; row 0 is padding and never drawn.
        negatives: number of draws for each position.
    """
    size = (len(targets), negatives)
    drawn = torch.randint(1, len(item_vectors), size, device=states.device)
    of_targets = (states * item_vectors[targets]).sum(dim=1, keepdim=True)
    if len(item_vectors) < negatives * states.shape[1]:  # all products take less memory
        of_drawn = (states @ item_vectors.T).gather(1, drawn)
    else:
        of_drawn = (item_vectors[drawn] @ states.unsqueeze(2)).squeeze(2)
    of_drawn = of_drawn.masked_fill(drawn == targets.unsqueeze(1), -torch.inf)
    logits = torch.cat((of_targets, of_drawn), dim=1)
    return functional.cross_entropy(logits, torch.zeros_like(targets))
