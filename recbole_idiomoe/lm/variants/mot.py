"""MoT, mixture of transformers: attention projections, norms and FFN per type (section 4.2.1)."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers
from recbole_idiomoe.lm.experts import install_experts
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.variants.architecture import Architecture
from recbole_idiomoe.lm.variants.by_type import Splitter, is_norm

# Norms of queries and keys that see (B, T, heads, head_dim), before heads and positions swap.
_POSITIONWISE_NORMS = ("q_norm", "k_norm")


def install_mot(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Give the layers ``config.expert_layers`` projections, norms and an FFN per token type.

    Tokens of both types meet in one causal attention. If any layer is changed, the final norm is
    per token type too, as in Bagel. The FFN is IDIOMoE's two-expert FFN, so ``expert_width`` and
    ``dropout`` have the same meaning as in IDIOMoE.

    Returns:
        The item tokens' modules. Their norms always start as copies.

    Raises:
        BackboneError: the attention has an unknown name, or a norm that mixes positions.
    """
    layers = decoder_layers(backbone)
    for layer in layers:
        for name, child in attention_of(layer).named_children():
            if is_norm(child) and name not in _POSITIONWISE_NORMS:
                raise BackboneError(
                    f"backbone of type {backbone.config.model_type!r} has a norm {name!r} in its "
                    "attention that cannot be had per token type; choose another backbone."
                )
    added = install_experts(backbone, config, routing, init, seed)
    splitter = Splitter(backbone, routing, init, seed + 1)
    for index in config.expert_layers:
        splitter.split_projections(attention_of(layers[index]))
        splitter.split_norms(attention_of(layers[index]))
        splitter.split_norms(layers[index])
    if config.expert_layers:
        splitter.split_norms(backbone.base_model)
    return added + splitter.added


MOT = Architecture(install_mot)
