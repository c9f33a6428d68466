"""AppendBlocks and PrependBlocks: new blocks as large as IDIOMoE's experts (section 4.2.1)."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.architecture import Architecture, Setup
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import (
    attention_of,
    backbone_ffns,
    decoder_layers,
    ffn_name,
    is_projection,
    mark_initialized,
    neuron_count,
    output_projection,
)
from recbole_idiomoe.lm.experts import add_ffn_dropout, add_output_dropout
from recbole_idiomoe.lm.variants.budget import (
    TOLERANCE,
    budget_to_match,
    check_match,
    ffn_size,
    parameter_count,
)

# Fields of a decoder's configuration that set the number of neurons of its FFN.
_WIDTHS = ("intermediate_size", "n_inner")


def plan_blocks(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """Choose blocks with as many parameters as IDIOMoE's item experts.

    The blocks are like the backbone's if some number of them is within 2% of IDIOMoE's size.
    Otherwise the nearest number of blocks is used, with more or fewer neurons in each.

    Returns ``blocks``, their number; ``neurons`` of their FFNs; ``depth``, of the decoder with
    them. Raises a SettingError if ``block_start`` is unknown, or no size matches IDIOMoE's.
    """
    start = config.architecture_args["block_start"]
    if start not in ("random", "identity"):
        raise SettingError(f"block_start={start!r} is neither 'random' nor 'identity'.")
    budget = budget_to_match(backbone, config)
    layers = decoder_layers(backbone)
    ffn = backbone_ffns(backbone)[0]
    neurons, block = neuron_count(ffn), parameter_count(layers[0])
    count = max(1, round(budget.experts / block))
    if abs(budget.gap(count * block)) > TOLERANCE:
        without_ffn = block - parameter_count(ffn)
        neuron = ffn_size(ffn, 1) - ffn_size(ffn, 0)
        wanted = budget.experts / count - (without_ffn + ffn_size(ffn, 0))
        neurons = max(1, round(wanted / neuron))
        check_match(config.architecture, budget, count * (without_ffn + ffn_size(ffn, neurons)))
    return {"blocks": count, "neurons": neurons, "depth": len(layers) + count}


def install_blocks(setup: Setup, *, at_end: bool) -> list[nn.Module]:
    """Insert the planned blocks after the last block or before the first one; return them."""
    backbone, config, plan = setup.backbone, setup.config, setup.config.architecture_args
    count = plan["blocks"]
    layers = decoder_layers(backbone)
    old = list(layers)
    if len(old) == plan["depth"]:
        # A saved configuration's depth includes the new blocks, which then have the wrong width.
        old = old[:-count] if at_end else old[count:]
    else:
        if types := getattr(backbone.config, "layer_types", None):
            more = [types[-1] if at_end else types[0]] * count
            backbone.config.layer_types = [*types, *more] if at_end else [*more, *types]
        backbone.config.num_hidden_layers += count
        config.backbone_config = backbone.config
    first = len(old) if at_end else 0
    new = [_block(backbone, type(old[0]), first + n, plan["neurons"]) for n in range(count)]
    for block in new:
        name = ffn_name(block)
        assert name is not None
        ffn = getattr(block, name)
        if plan["block_start"] == "identity":  # attention and FFN add nothing
            *_, output = filter(is_projection, attention_of(block).children())
            for parameter in (*output.parameters(), *output_projection(ffn).parameters()):
                parameter.detach().zero_()
        if config.dropout:
            add_output_dropout(ffn, config.dropout)
    # In place, because hooks and parallelism plans may refer to this very list.
    ordered = [*old, *new] if at_end else [*new, *old]
    del layers[:]
    layers.extend(ordered)
    for index, layer in enumerate(ordered):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    add_ffn_dropout(setup, offset=0 if at_end else count)
    return new


def _block(
    backbone: PreTrainedModel, layer_class: type[nn.Module], index: int, neurons: int
) -> nn.Module:
    """A block with ``neurons`` neurons and random weights from the family's own initialiser."""
    sizes = copy.deepcopy(backbone.config)
    for field in _WIDTHS:
        if hasattr(sizes, field):
            setattr(sizes, field, neurons)
    block = layer_class(sizes, index)
    for module in block.modules():
        if getattr(module, "config", None) is sizes:
            module.config = backbone.config  # type: ignore[assignment]
        with torch.no_grad():
            backbone._init_weights(module)
    mark_initialized(block)
    return block.to(device=backbone.device, dtype=backbone.dtype).train(backbone.training)


APPEND_BLOCKS, PREPEND_BLOCKS = (
    Architecture(partial(install_blocks, at_end=at_end), {"block_start": "random"}, plan_blocks)
    for at_end in (True, False)
)
