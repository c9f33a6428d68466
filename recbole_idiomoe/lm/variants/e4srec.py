"""E4SRec's decoder: adapters in the FFNs, and item vectors of another model as input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from recbole_idiomoe.lm.architecture import Architecture, Setup
from recbole_idiomoe.lm.configuration import IdiomoeConfig, initial_std
from recbole_idiomoe.lm.decoder import backbone_ffns
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.variants.adapters import install_adapters


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


def projected_table(config: IdiomoeConfig) -> ItemTable:
    """A :class:`ProjectedItemTable` for given vectors of width ``item_embedding_dim``."""
    width = config.item_embedding_dim or config.hidden_size
    return ProjectedItemTable(config.item_num, config.hidden_size, width, initial_std(config))


def install_ffn_adapters(setup: Setup) -> list[nn.Module]:
    """Adapt the linear maps of the FFNs with the options ``lora_rank`` and ``lora_alpha``."""
    options = setup.config.architecture_args
    ffns = backbone_ffns(setup.backbone)
    return install_adapters(setup, ffns, options["lora_rank"], options["lora_alpha"])


E4SREC = Architecture(
    install_ffn_adapters, {"lora_rank": 16, "lora_alpha": 16}, item_table=projected_table
)
