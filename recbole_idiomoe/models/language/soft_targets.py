"""Soft targets: part of each target's probability goes to items that were as likely to come.

A user takes one item where several would have done, and most items are taken rarely. Two sources
name the others: the items' text (``text_smoothing``) and the items that training histories have
around the item before the target (``transition_smoothing``). Both are tables that are made before
training from the catalogue and the training split alone.

The cross entropy with targets ``q`` is ``logsumexp(scores) - sum_j q_j score_j``. It is the cross
entropy with the single target minus ``sum_j d_j score_j``, where ``d`` is ``q`` minus the single
target. ``d`` is sparse and sums to 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor, nn

from recbole_idiomoe.data.dataset import count_transitions, popularity_damping
from recbole_idiomoe.lm.embedding import text_directions
from recbole_idiomoe.models.language.options import LanguageModelOptions

TEXT_NEIGHBOURS = 20
TEMPERATURE = 0.05  # of the softmax over cosines
DECAYS = 0.7 ** np.arange(3)  # weights of transitions over 1, 2 and 3 steps
REVERSE_WEIGHT = 0.5
POPULARITY_DAMPING = 0.5
MOST_FOLLOWERS = 64  # of an item; five of six items of amazon-toys have fewer
CHUNK_BYTES = 256 * 2**20  # of cosines in memory at once


class Neighbours(NamedTuple):
    """Other items for each item; rows are padded with item 0 of weight 0."""

    items: Tensor
    """``(item_num, k)``, int32."""
    weights: Tensor
    """``(item_num, k)``, float32, at least 0."""


class Followers(NamedTuple):
    """The items around each item in the training histories."""

    around: Neighbours
    """The weights are damped counts."""
    single: Tensor
    """The damped count of a single step to each item, ``(item_num,)``, float32."""


class SoftTargets(nn.Module):
    """Changes single targets to soft targets; the buffers are not saved with a model.

    Args:
        transition_share: share of the probability for the followers of the item before the target.
        text_share: share of the rest for the neighbours of the target, in [0, 1).
    """

    similar: Tensor
    similar_weights: Tensor
    around: Tensor
    around_weights: Tensor
    single: Tensor

    def __init__(
        self,
        text_share: float,
        similar: Neighbours,
        transition_share: float,
        followers: Followers,
    ) -> None:
        super().__init__()
        self.text_share = text_share
        self.transition_share = transition_share
        buffers = {
            "similar": similar.items,
            "similar_weights": similar.weights,
            "around": followers.around.items,
            "around_weights": followers.around.weights,
            "single": followers.single,
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, targets: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """The differences between soft and single targets.

        The transition from ``previous`` to the target is subtracted from the counts, because a pair
        that occurs once would otherwise name itself. A share without any neighbours stays with the
        target.

        Args:
            targets: rows of the catalogue, (N,).
            previous: the items before the targets, (N,), 0 for none.

        Returns:
            Items (N, k), the target first, and the probability that each gains; a row sums to 0.
        """
        around = self.around[previous]
        itself = self.single[targets].unsqueeze(1) * (around == targets.unsqueeze(1))
        counts = (self.around_weights[previous] - itself).clamp_min(0)
        total = counts.sum(1, keepdim=True).clamp_min(torch.finfo(counts.dtype).tiny)
        to_followers = self.transition_share * counts / total
        left = 1 - to_followers.sum(1, keepdim=True)
        to_similar = self.text_share * left * self.similar_weights[targets]
        gained = torch.cat((to_similar, to_followers), dim=1)
        lost = -gained.sum(1, keepdim=True)
        items = torch.cat((targets.unsqueeze(1).int(), self.similar[targets], around), dim=1)
        return items, torch.cat((lost, gained), dim=1)


def make_soft_targets(
    settings: LanguageModelOptions,
    item_num: int,
    vectors: np.ndarray | None,
    followers: Followers | None,
    device: torch.device,
) -> SoftTargets:
    """The soft targets that ``settings`` ask for.

    Args:
        vectors: text vectors (item_num, k), zero for an untrained item; for ``text_smoothing``.
        followers: for ``transition_smoothing``.
        device: where to compute.
    """
    nobody = Neighbours(torch.zeros(item_num, 0, dtype=torch.int32), torch.zeros(item_num, 0))
    similar, counted = nobody, Followers(nobody, torch.zeros(item_num))
    if settings.text_smoothing:
        assert vectors is not None
        similar = similar_items(text_directions(vectors, item_num), device)
    if settings.transition_smoothing:
        assert followers is not None
        counted = followers
    return SoftTargets(settings.text_smoothing, similar, settings.transition_smoothing, counted)


def similar_items(directions: Tensor, device: torch.device) -> Neighbours:
    """The items nearest to each in text; weights are a softmax of cosines.

    Args:
        directions: (item_num, k), of length 1, from
            :func:`~recbole_idiomoe.lm.embedding.text_directions`. Items with a zero row have no
            neighbours and are no neighbours.
        device: where to compute.
    """
    directions = directions.to(device)
    described = directions.any(dim=1)
    item_num = len(directions)
    most = min(TEXT_NEIGHBOURS, item_num)
    parts = []
    for rows in torch.arange(item_num, device=device).split(max(1, CHUNK_BYTES // (4 * item_num))):
        cosines = directions[rows] @ directions.T
        cosines[:, ~described] = -torch.inf
        cosines.scatter_(1, rows.unsqueeze(1), -torch.inf)  # the item itself
        nearest = cosines.topk(most)
        # An item without any neighbour has weights 0 / 0.
        weights = (nearest.values / TEMPERATURE).softmax(dim=1).nan_to_num(0.0)
        weights *= described[rows].unsqueeze(1)
        parts.append((nearest.indices.masked_fill(weights == 0, 0).int().cpu(), weights.cpu()))
    items, all_weights = (torch.cat(part) for part in zip(*parts, strict=True))
    return Neighbours(items, all_weights)


def training_followers(dataset: Any) -> Followers:
    """The items around each item in a training split, which is a ``HistoryDataset``."""
    damping = popularity_damping(dataset, POPULARITY_DAMPING)
    counts = count_transitions(dataset, DECAYS, REVERSE_WEIGHT) @ diags_array(damping)
    around = _strongest(csr_array(counts), MOST_FOLLOWERS)
    return Followers(around, torch.from_numpy(damping).float())


def _strongest(counts: csr_array, most: int) -> Neighbours:
    """The ``most`` largest counts of each row; of equal counts the first."""
    sizes = np.diff(counts.indptr)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((counts.indices, -counts.data, rows))
    rank = np.arange(len(rows)) - counts.indptr[rows]
    kept = rank < most
    shape = len(sizes), min(most, int(sizes.max(initial=0)))
    items, weights = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    items[rows[kept], rank[kept]] = counts.indices[order][kept]
    weights[rows[kept], rank[kept]] = counts.data[order][kept]
    return Neighbours(torch.from_numpy(items), torch.from_numpy(weights))
