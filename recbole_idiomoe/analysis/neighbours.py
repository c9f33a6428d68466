"""Nearest neighbours by cosine among vectors that do not fit into memory (paper, equation 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_idiomoe.base.errors import SettingError

AT_ONCE = 1 << 26
"""Elements of a block of a matrix product: 256 MB in float32."""


@dataclass(frozen=True)
class References:
    """Vectors to compare with, computed in blocks.

    Args:
        what: their name in messages, for example ``items``.
        ids: ids of the vectors, (n,).
        vectors: maps ids (m,) to vectors (m, d).
    """

    what: str
    ids: Tensor
    vectors: Callable[[Tensor], Tensor]


@torch.no_grad()
def nearest(
    queries: Tensor, references: References, k: int, at_once: int = AT_ONCE
) -> tuple[Tensor, Tensor]:
    """The ``k`` references with the greatest cosine to each query, greatest first.

    At most ``at_once`` cosines, or elements of reference vectors, exist at a time. A zero vector
    is never a neighbour; all cosines of a zero query are 0.

    Args:
        queries: query vectors (q, d).

    Returns:
        Cosines (q, k), float32, and the ids of the references (q, k).

    Raises:
        SettingError: fewer than ``k`` references are not zero.
    """
    queries = F.normalize(queries.float(), dim=1)
    ids = references.ids.to(queries.device)
    best = queries.new_full((len(queries), k), -torch.inf)
    best_ids = ids.new_zeros((len(queries), k))
    for piece in ids.split(max(1, at_once // max(queries.shape))):
        vectors = references.vectors(piece).float()
        cosines = queries @ F.normalize(vectors, dim=1).T
        cosines.masked_fill_(~vectors.any(dim=1), -torch.inf)
        found, columns = cosines.topk(min(k, len(piece)), dim=1)
        merged = torch.cat((best, found), dim=1)
        best, kept = merged.topk(k, dim=1)
        best_ids = torch.cat((best_ids, piece[columns]), dim=1).gather(1, kept)
    if torch.isneginf(best).any():
        raise SettingError(f"k={k} asks for more {references.what} than there are; lower it.")
    return best, best_ids
