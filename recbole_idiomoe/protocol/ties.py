"""Items with equal scores are ranked in a random order, another one for each user.

``torch.topk`` leaves the order of ties open; in practice low item ids come first, which many data
sets give to popular items. A constant score would then look better than chance.

The order is drawn by a seed of its own, not by the run's: it is the same for every model, run and
size of batch, and for any number of processes. It depends on the row of the loader and the place of
the item in the catalogue, never on scores. Scores without ties rank exactly as they do alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from recbole_idiomoe.protocol.loader import own_rows

ORDERS = 4096
"""Orders of the catalogue; the rows of a loader take them in turn."""
_SEED = 0
_STEP = 2**32  # between the keys of neighbouring float32 numbers; orders are smaller
_NEGATIVE = 0x7FFFFFFF  # the bits that turn around the order of negative numbers
MASKED = int((torch.tensor(-torch.inf).view(torch.int32) ^ _NEGATIVE).item()) * _STEP
"""The key of an item with the score -inf, which is the lowest of all and the only one shared."""


class TieBreaker:
    """Turns the scores of one evaluation, batch by batch, into keys without ties.

    Args:
        loader: the loader that is evaluated, from its first batch on.
    """

    def __init__(self, loader: Any) -> None:
        self._rows, self._next = torch.from_numpy(own_rows(loader)) % ORDERS, 0

    def keys(self, scores: torch.Tensor) -> torch.Tensor:
        """Whole numbers that order the items of each user as ``scores`` do, ties at random.

        Args:
            scores: float32 or shorter, of the next rows of the loader, shape ``(rows, item_num)``.

        Returns:
            int64 of the shape of ``scores``. Only items with the score -inf share a key,
            :data:`MASKED`; nan is above all.
        """
        return _keys(scores, self._next_rows(len(scores)))

    def break_in_lists(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        """``scores``, but without ties that concern the first ``count`` places.

        The first places are those of :meth:`keys`, at a small part of its cost: most rows have no
        such ties and stay as they are. In the others, the items in the first places have the
        scores ``count``, ``count - 1``, ..., and all other items have -inf.

        Args:
            scores: of the next rows of the loader, shape ``(rows, item_num)``.
            count: length of the lists that are made of the scores.

        Returns:
            float32 of the shape of ``scores``; float32 scores without such ties are not copied.
        """
        rows, scores = self._next_rows(len(scores)), scores.float()
        best = scores.topk(min(count + 1, scores.shape[1]), dim=1).values
        equal = (best[:, 1:] == best[:, :-1]) & (best[:, 1:] > -torch.inf)
        tied = equal.any(dim=1).nonzero().squeeze(1)
        if not len(tied):
            return scores
        keys, listed = _keys(scores[tied], rows[tied.to(rows.device)]).topk(count, dim=1)
        places = torch.arange(count, 0, -1, device=scores.device, dtype=scores.dtype)
        places = places.expand_as(keys).masked_fill(keys == MASKED, -torch.inf)
        broken = torch.full_like(scores[tied], -torch.inf).scatter(1, listed, places)
        return scores.index_copy(0, tied, broken)

    def _next_rows(self, count: int) -> torch.Tensor:
        """The orders of the next ``count`` rows of the loader, by number."""
        self._next += count
        return self._rows[self._next - count : self._next]


def _keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    item_num = scores.shape[1]
    scores = scores.float() + 0.0  # -0.0 becomes 0.0, which it is equal to
    bits = scores.view(torch.int32)
    # As whole numbers, the bits of positive floats are ordered as the floats are.
    keys = (bits ^ ((bits >> 31) & _NEGATIVE)).long().mul_(_STEP)
    rows = rows.to(scores.device, non_blocking=True)
    orders = _draws(item_num, scores.device).unfold(0, item_num, 1)[rows]
    return keys.add_(orders.masked_fill_(scores == -torch.inf, 0))


def scores_alone(keys: torch.Tensor) -> torch.Tensor:
    """``keys`` without the order of ties: equal where scores are equal, of the same shape."""
    return keys >> 32


@lru_cache(maxsize=2)
def _draws(item_num: int, device: torch.device) -> torch.Tensor:
    """Distinct numbers in random order, of which every window of ``item_num`` is one order."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randperm(item_num + ORDERS, generator=generator).int().to(device)
