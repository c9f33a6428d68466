"""Item tables that embed items by other vectors than score them, after E4SRec and CoVE."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from recbole_idiomoe.lm.embedding import ItemTable, weighted_sums

_PRIME = 2**31 - 1  # its product with an item number fits in int64


class ProjectedItemTable(ItemTable):
    """An item table that embeds items by fixed given vectors and scores them by trained rows.

    The given vectors pass through a trained projection (E4SRec).

    Args:
        item_num, hidden_size, std: see :class:`ItemTable`.
        vector_size: width of the given vectors, which are random until :meth:`take_vectors`.
    """

    vectors: Tensor

    def __init__(self, item_num: int, hidden_size: int, vector_size: int, std: float) -> None:
        super().__init__(item_num, hidden_size, std=std)
        self.register_buffer("vectors", torch.randn(item_num, vector_size))
        self.projection = nn.Linear(vector_size, hidden_size)
        init.normal_(self.projection.weight, std=std / math.sqrt(vector_size))
        init.zeros_(self.projection.bias)

    def forward(self, items: Tensor) -> Tensor:
        return self.projection(F.embedding(items, self.vectors))

    @torch.no_grad()
    def take_vectors(self, vectors: Tensor) -> None:
        """Use ``vectors`` (item_num, vector_size) as the given vectors; row 0 is the padding item.

        The projection is rescaled, so that embedded items have the standard deviation ``std``.
        """
        self.vectors.copy_(vectors)
        spread = self.projection(self.vectors[1:]).std()
        self.projection.weight.mul_(self.std / spread.clamp_min(1e-12))


class HashedItemTable(ItemTable):
    """An item table with fewer rows than items: an item is the mean of a few hashed rows (CoVE).

    One set of rows embeds items and another one scores them, both with the same hash functions.
    These are universal hash functions, ``((a i + b) mod p) mod rows``, with random a and b.

    Args:
        item_num, hidden_size, std: see :class:`ItemTable`.
        hashes: number of hash functions; not used if ``compression`` is 1.
        compression: number of items for each row; 1 gives every item a row of its own.
    """

    codes: Tensor

    def __init__(
        self, item_num: int, hidden_size: int, std: float, *, hashes: int, compression: int
    ) -> None:
        size = max(1, (item_num - 1) // compression)
        super().__init__(size, hidden_size, std=std)
        self.item_num = item_num
        items = torch.arange(-1, item_num - 1, device="cpu").clamp_min(0).unsqueeze(1)
        if compression > 1:
            a = torch.randint(1, _PRIME, (hashes,), device="cpu")
            b = torch.randint(_PRIME, (hashes,), device="cpu")
            items = (a * items + b) % _PRIME % size
        self.register_buffer("codes", items)
        self.inputs = nn.Embedding(size, hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw normal rows whose means have the standard deviation ``std``."""
        if hasattr(self, "inputs"):  # the base class calls this before they exist
            std = self.std * math.sqrt(self.codes.shape[1])
            init.normal_(self.rows, std=std)
            init.normal_(self.inputs.weight, std=std)

    def forward(self, items: Tensor) -> Tensor:
        return _means(self.inputs.weight, self.codes[items])

    def logits(self, hidden_states: Tensor) -> Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            scores = F.linear(hidden_states.float(), self.weight())
        scores[..., 0] = -torch.inf
        return scores

    def _mixture(self, items: Tensor, weights: Tensor) -> Tensor:
        codes = self.codes[items]
        shared = (weights / codes.shape[-1]).unsqueeze(-1).expand(codes.shape)
        return weighted_sums(self.rows, codes.flatten(1), shared.flatten(1))

    def weight(self) -> Tensor:
        """The vectors that score items, (item_num, d), float32."""
        return _means(self.rows.float(), self.codes)


def _means(rows: Tensor, codes: Tensor) -> Tensor:
    """Means of the rows (m, d) with the indices ``codes`` (..., k): (..., d)."""
    bags = F.embedding_bag(codes.reshape(-1, codes.shape[-1]), rows, mode="mean")
    return bags.view(*codes.shape[:-1], -1)
