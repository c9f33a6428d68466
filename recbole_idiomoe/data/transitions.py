"""Which items follow which in the training histories, counted."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from recbole_idiomoe.data.dataset import HISTORY_END, HistoryDataset


def count_transitions(
    dataset: HistoryDataset, decays: np.ndarray, reverse_weight: float
) -> csr_array:
    """How often each item (column) stands around each item (row), ``(item_num, item_num)``.

    Only the interactions of ``dataset`` are counted, which is the training split.

    Args:
        decays: what a transition over 1, 2, ... steps counts, shape ``(most steps,)``.
        reverse_weight: what it counts, relative to that, on the way back.
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
    """One over each item's interactions in ``dataset``, at least 1, to a power, ``(item_num,)``."""
    popularity = np.bincount(dataset.split_items(), minlength=dataset.item_num)
    damping: np.ndarray = np.maximum(popularity, 1.0) ** -power
    return damping
