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
        count, item_num = scores.shape
        rows = self._rows[self._next : self._next + count].to(scores.device, non_blocking=True)
        self._next += count
        scores = scores.float() + 0.0  # -0.0 becomes 0.0, which it is equal to
        bits = scores.view(torch.int32)
        # As whole numbers, the bits of positive floats are ordered as the floats are.
        keys = (bits ^ ((bits >> 31) & _NEGATIVE)).long().mul_(_STEP)
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
