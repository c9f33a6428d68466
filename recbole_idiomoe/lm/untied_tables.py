"""Item tables with one kind of vector to read an item by and another to score it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from recbole_idiomoe.lm.embedding import ItemTable, weighted_sums

_PRIME = 2**31 - 1  # times an item's number it stays within int64


class ProjectedItemTable(ItemTable):
    """Given vectors that never change, projected to be read; rows that train, to score (E4SRec).

    Args:
        vector_size: columns of the given vectors, which are random until :meth:`take_vectors`.
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
        """Take vectors (item_num, vector_size) as they are, row 0 the padding item's.

        The projection is scaled, so that items are read as large as they would be from rows.
        """
        self.vectors.copy_(vectors)
        spread = self.projection(self.vectors[1:]).std()
        self.projection.weight.mul_(self.std / spread.clamp_min(1e-12))


class HashedItemTable(ItemTable):
    """Fewer rows than items, each item the mean of a few that hash functions choose (CoVE).

    One set of rows is read, another scores; the same functions choose in both. Their codes are
    those of universal hashing, ``((a i + b) mod p) mod rows``, a and b drawn at the start.

    Args:
        hashes: functions; with ``compression=1`` every item has a row of its own instead.
        compression: items for each row.
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
        """Normal rows, whose means then have the table's standard deviation."""
        if hasattr(self, "inputs"):  # not yet while the base class is made
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
        """What scores each item, (item_num, d), float32."""
        return _means(self.rows.float(), self.codes)


def _means(rows: Tensor, codes: Tensor) -> Tensor:
    """Means of the rows (m, d) that codes (..., k) name: (..., d)."""
    bags = F.embedding_bag(codes.reshape(-1, codes.shape[-1]), rows, mode="mean")
    return bags.view(*codes.shape[:-1], -1)
