"""One FFN for text and items alike: ItemLLM and IDTransformer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import backbone_ffns
from recbole_idiomoe.lm.routing import TokenRouting


def install_nothing(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Leave the decoder as it came, but with IDIOMoE's dropout."""
    drop_ffn_outputs(backbone, config)
    return []


def drop_ffn_outputs(backbone: PreTrainedModel, config: IdiomoeConfig, before: int = 0) -> None:
    """Give plain FFNs the dropout that IDIOMoE has on the outputs of its experts.

    Only in the layers that would have experts: a control differs in what it is about alone.

    Args:
        before: blocks that stand before those that the backbone brought.
    """
    if config.dropout:
        ffns = backbone_ffns(backbone)
        for layer in config.expert_layers:
            ffns[before + layer].register_forward_hook(OutputDropout(config.dropout))


class OutputDropout:
    """A forward hook that drops outputs in training; a class, so that models can be pickled."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return F.dropout(output, self.p, module.training)
