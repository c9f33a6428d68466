"""CoVE's decoder: adapters in all blocks, and item tables compressed by hashing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from recbole_idiomoe.lm.architecture import Architecture, Setup
from recbole_idiomoe.lm.configuration import IdiomoeConfig, initial_std
from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.embedding import ItemTable, weighted_sums
from recbole_idiomoe.lm.variants.adapters import install_adapters

_PRIME = 2**31 - 1  # its product with an item number fits in int64


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


def hashed_table(config: IdiomoeConfig) -> ItemTable:
    """A :class:`HashedItemTable` with the options ``item_hashes`` and ``item_compression``."""
    options = config.architecture_args
    return HashedItemTable(
        config.item_num,
        config.hidden_size,
        initial_std(config),
        hashes=options["item_hashes"],
        compression=options["item_compression"],
    )


def install_block_adapters(setup: Setup) -> list[nn.Module]:
    """Adapt all linear maps of the blocks with the options ``lora_rank`` and ``lora_alpha``."""
    options = setup.config.architecture_args
    blocks = decoder_layers(setup.backbone)
    return install_adapters(setup, blocks, options["lora_rank"], options["lora_alpha"])


COVE = Architecture(
    install_block_adapters,
    {"lora_rank": 16, "lora_alpha": 16, "item_hashes": 4, "item_compression": 2},
    item_table=hashed_table,
)
