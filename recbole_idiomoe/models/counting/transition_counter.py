"""TransitionCounter: which items followed which in the training histories, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array, diags_array

from recbole_idiomoe.data.dataset import count_transitions, popularity_damping
from recbole_idiomoe.models.counting.options import TransitionCounterOptions
from recbole_idiomoe.models.counting.untrained import UntrainedRecommender


class TransitionCounter(UntrainedRecommender):
    """Counts of transitions between items, decayed with the steps between them.

    The ``k``-th last item of a history, up to ``transition_steps``, gives every item ``d ** (k-1)``
    times how often that item followed it; ``d`` is ``step_decay``. Of what followed, a transition
    over ``k`` steps counts ``d ** (k-1)`` too, and ``reverse_weight`` times that for the way back;
    a pair's count is divided by each item's training interactions to the power of
    ``popularity_damping``. Only training interactions are counted.

    A cousin of sequential rules (Kamehkhosh et al., 2017; Ludewig and Jannach, 2018). No
    published figure is known; a recommender that stays below it has learnt little.
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
        # Compressed rows: what follows item i is at starts[i] to starts[i + 1].
        self.register_buffer("starts", torch.from_numpy(counts.indptr).long())
        self.register_buffer("followers", torch.from_numpy(counts.indices).long())
        self.register_buffer("weights", torch.from_numpy(counts.data).float())

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, shape ``(batch, item_num)``."""
        histories = interaction[self.ITEM_SEQ].cpu().numpy()
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        rows, ages = np.nonzero(np.arange(len(self.decays)) < lengths[:, None])
        recent = histories[rows, lengths[rows] - 1 - ages]
        shape = (len(histories), self.n_items)
        histories = csr_array((self.decays[ages], (rows, recent)), shape)
        scores = (histories @ self._transitions()).toarray()
        return torch.from_numpy(scores).float().to(self.weights.device)

    def _transitions(self) -> csr_array:
        arrays = (array.cpu().numpy() for array in (self.weights, self.followers, self.starts))
        return csr_array(tuple(arrays), (self.n_items, self.n_items))
