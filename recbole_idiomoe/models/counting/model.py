"""Recommenders that count the training interactions and are not trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array, diags_array

from recbole_idiomoe.data.dataset import count_transitions, popularity_damping
from recbole_idiomoe.models.counting.options import TransitionCounterOptions
from recbole_idiomoe.models.full_sort import FullSortRecommender


class UntrainedRecommender(FullSortRecommender):
    """A model whose buffers are filled from the training split when it is built.

    RecBole's ``ItemKNN`` and ``EASE`` are built in the same way. The second that it takes is not
    counted as training time.
    """


class Popularity(UntrainedRecommender):
    """Every user gets the items with the most training interactions.

    This is RecBole's ``Pop`` under the protocol of sequential models: one last item per user, and
    only training interactions are counted.
    """

    counts: torch.Tensor

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        counts = np.bincount(dataset.split_items(), minlength=self.n_items)
        self.register_buffer("counts", torch.from_numpy(counts).float())

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        return self.counts.repeat(len(interaction[self.ITEM_SEQ]), 1)


class TransitionCounter(UntrainedRecommender):
    """Counts of transitions between items, which decay with the steps between them.

    With ``d = step_decay``, the ``k``-th last item of a history, up to ``transition_steps``, gives
    every item ``d ** (k-1)`` times its count of transitions to that item. A transition over ``k``
    steps counts ``d ** (k-1)`` too, and ``reverse_weight`` times that for the way back. A pair's
    count is divided by each item's training interactions to the power of ``popularity_damping``.
    Only training interactions are counted.

    It is related to sequential rules (Kamehkhosh et al., 2017; Ludewig and Jannach, 2018). No
    figures for it have been published. A recommender with lower scores has learnt little.
    """

    starts: torch.Tensor
    followers: torch.Tensor
    weights: torch.Tensor

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        options = TransitionCounterOptions.from_mapping(config)
        self.decays = options.step_decay ** np.arange(options.transition_steps)
        counts = count_transitions(dataset, self.decays, options.reverse_weight)
        damping = diags_array(popularity_damping(dataset, options.popularity_damping))
        counts = csr_array(damping @ counts @ damping)
        # Compressed rows: the followers of item i are at starts[i] to starts[i + 1].
        self.register_buffer("starts", torch.from_numpy(counts.indptr).long())
        self.register_buffer("followers", torch.from_numpy(counts.indices).long())
        self.register_buffer("weights", torch.from_numpy(counts.data).float())

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        histories = interaction[self.ITEM_SEQ].cpu().numpy()
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        rows, ages = np.nonzero(np.arange(len(self.decays)) < lengths[:, None])
        recent = histories[rows, lengths[rows] - 1 - ages]
        shape = (len(histories), self.n_items)
        histories = csr_array((self.decays[ages], (rows, recent)), shape)
        arrays = (array.cpu().numpy() for array in (self.weights, self.followers, self.starts))
        transitions = csr_array(tuple(arrays), (self.n_items, self.n_items))
        scores = (histories @ transitions).toarray()
        return torch.from_numpy(scores).float().to(self.weights.device)
