"""Counts of item-to-item transitions in the training histories."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from recbole_idiomoe.data.dataset import HISTORY_END, HistoryDataset


def count_transitions(
    dataset: HistoryDataset, decays: np.ndarray, reverse_weight: float
) -> csr_array:
    """Count how often each item (column) is near each item (row), shape ``(item_num, item_num)``.

    Args:
        dataset: the training split, whose interactions are counted.
        decays: weight of a transition over 1, 2, ... steps forward, shape ``(most steps,)``.
        reverse_weight: weight of a step backward relative to the same step forward.
    """
    ends = dataset.inter_feat[HISTORY_END].numpy()
    lengths = dataset.inter_feat[dataset.item_list_length_field].numpy()
    items, shape = dataset.history_items, (dataset.item_num, dataset.item_num)
    counts = csr_array(shape)
    for step, decay in enumerate(decays, start=1):
        later = ends[lengths >= step]
        pairs = items[later - step], items[later]
        counts += csr_array((np.full(len(later), decay), pairs), shape)
    return counts + reverse_weight * counts.T


def popularity_damping(dataset: HistoryDataset, power: float) -> np.ndarray:
    """Factors that lower the scores of popular items, shape ``(item_num,)``.

    They are each item's number of interactions in ``dataset``, at least 1, to the power ``-power``.
    """
    popularity = np.bincount(dataset.split_items(), minlength=dataset.item_num)
    return np.maximum(popularity, 1.0) ** -power
