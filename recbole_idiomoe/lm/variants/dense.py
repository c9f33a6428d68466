"""The dense control: one FFN for text and items (Item-LLM and ID Transformer, section 4.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import backbone_ffns
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.variants.architecture import Architecture


def install_nothing(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Leave the decoder unchanged, except for IDIOMoE's dropout on FFN outputs."""
    add_ffn_dropout(backbone, config)
    return []


def add_ffn_dropout(backbone: PreTrainedModel, config: IdiomoeConfig, offset: int = 0) -> None:
    """Add the dropout that IDIOMoE has on expert outputs to the backbone's own FFNs.

    Only the layers that would have experts get it, so that a control differs from IDIOMoE in the
    studied change alone.

    Args:
        offset: number of new blocks in front of the backbone's first block.
    """
    if config.dropout:
        ffns = backbone_ffns(backbone)
        for layer in config.expert_layers:
            ffns[offset + layer].register_forward_hook(OutputDropout(config.dropout))


class OutputDropout:
    """A forward hook with dropout in training; it is a class so that models can be pickled."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return F.dropout(output, self.p, module.training)


DENSE = Architecture(install_nothing)
