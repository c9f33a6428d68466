"""MoA, mixture of attention: attention projections per token type (section 4.2.1)."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.variants.architecture import Architecture
from recbole_idiomoe.lm.variants.by_type import Splitter
from recbole_idiomoe.lm.variants.dense import add_ffn_dropout


def install_moa(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Give q, k, v and o a projection per token type in the layers ``config.expert_layers``.

    Queries, keys and values of both types meet in one causal attention; the FFN is shared.
    Families that fuse q, k and v in one projection get that projection twice. ``expert_width`` is
    not used.

    Returns:
        The item tokens' projections: copies of the text tokens' or random, as ``init`` says.

    Raises:
        BackboneError: the attention module has an unknown name.
    """
    add_ffn_dropout(backbone, config)
    splitter = Splitter(backbone, routing, init, seed)
    layers = decoder_layers(backbone)
    for index in config.expert_layers:
        splitter.split_projections(attention_of(layers[index]))
    return splitter.added


MOA = Architecture(install_moa)
