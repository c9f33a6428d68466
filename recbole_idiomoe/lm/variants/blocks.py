"""AppendBlocks and PrependBlocks: new blocks as large as IDIOMoE's experts (section 4.2.1)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import (
    attention_of,
    backbone_ffns,
    decoder_layers,
    ffn_layout,
    ffn_name,
    is_projection,
    neuron_count,
)
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.variants.architecture import Architecture
from recbole_idiomoe.lm.variants.budget import (
    TOLERANCE,
    check_match,
    check_something_to_match,
    expert_budget,
    ffn_size,
    parameter_count,
)
from recbole_idiomoe.lm.variants.dense import OutputDropout, add_ffn_dropout
from recbole_idiomoe.lm.variants.wide_ffn import zero_output

BLOCK_STARTS = ("random", "identity")
# Fields of a decoder's configuration that set the number of neurons of its FFN.
_WIDTHS = ("intermediate_size", "n_inner")


def plan_blocks(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """Choose blocks with as many parameters as IDIOMoE's item experts.

    The blocks are like the backbone's if some number of them is within 2% of IDIOMoE's size.
    Otherwise the nearest number of blocks is used, with more or fewer neurons in each.

    Returns:
        ``blocks``, their number; ``neurons`` of their FFNs; ``depth``, of the decoder with them.

    Raises:
        SettingError: ``block_start`` is unknown, IDIOMoE has no expert to match, or its experts
            are too small for a block.
    """
    start = config.architecture_args["block_start"]
    if start not in BLOCK_STARTS:
        raise SettingError(f"block_start={start!r} is neither 'random' nor 'identity'.")
    budget = expert_budget(backbone, config)
    check_something_to_match(config.architecture, budget)
    layers = decoder_layers(backbone)
    ffn = backbone_ffns(backbone)[0]
    neurons, block = neuron_count(ffn), parameter_count(layers[0])
    count = max(1, round(budget.experts / block))
    if abs(budget.gap(count * block)) > TOLERANCE:
        neurons = _nearest_width(budget.experts / count, block, ffn)
        added = count * (block - parameter_count(ffn) + ffn_size(ffn, neurons))
        check_match(config.architecture, budget, added)
    return {"blocks": count, "neurons": neurons, "depth": len(layers) + count}


def install_appended(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Insert the planned blocks between the last block and the final norm; return them."""
    return _install(backbone, config, at_end=True)


def install_prepended(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Insert the planned blocks between the embedding and the first block; return them."""
    return _install(backbone, config, at_end=False)


def _install(backbone: PreTrainedModel, config: IdiomoeConfig, at_end: bool) -> list[nn.Module]:
    plan = config.architecture_args
    count, depth = plan["blocks"], plan["depth"]
    layers = decoder_layers(backbone)
    old = list(layers)
    if len(old) == depth:
        # A saved configuration's depth includes the new blocks, which then have the wrong width.
        old = old[:-count] if at_end else old[count:]
    else:
        _lengthen(backbone, count, at_end)
        config.backbone_config = backbone.config
    first = len(old) if at_end else 0
    new = [_block(backbone, type(old[0]), first + n, plan["neurons"]) for n in range(count)]
    for block in new:
        if plan["block_start"] == "identity":
            _make_identity(block)
        if config.dropout:
            _ffn(block).register_forward_hook(OutputDropout(config.dropout))
    # In place, because hooks and parallelism plans may refer to this very list.
    ordered = [*old, *new] if at_end else [*new, *old]
    del layers[:]
    layers.extend(ordered)
    for index, layer in enumerate(ordered):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    add_ffn_dropout(backbone, config, offset=0 if at_end else count)
    return list(new)


def _nearest_width(size: float, block: int, ffn: nn.Module) -> int:
    """The number of neurons, at least 1, that gives a block about ``size`` parameters."""
    neuron = ffn_size(ffn, 1) - ffn_size(ffn, 0)
    without = block - parameter_count(ffn) + ffn_size(ffn, 0)
    return max(1, round((size - without) / neuron))


def _lengthen(backbone: PreTrainedModel, count: int, at_end: bool) -> None:
    """Add the new blocks to the depth in the backbone's configuration."""
    config = backbone.config
    types = getattr(config, "layer_types", None)
    if types:
        more = [types[-1] if at_end else types[0]] * count
        config.layer_types = [*types, *more] if at_end else [*more, *types]
    config.num_hidden_layers += count


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
        # transformers then does not draw these weights again.
        module._is_hf_initialized = True  # type: ignore[assignment]
    return block.to(device=backbone.device, dtype=backbone.dtype).train(backbone.training)


@torch.no_grad()
def _make_identity(block: nn.Module) -> None:
    """Zero the output projections of attention and FFN, so that a block adds nothing."""
    *_, output = filter(is_projection, attention_of(block).children())
    for parameter in output.parameters():
        parameter.zero_()
    zero_output(_ffn(block))


def _ffn(block: nn.Module) -> nn.Module:
    name = ffn_name(block)
    assert name is not None and ffn_layout(getattr(block, name)) is not None
    ffn: nn.Module = getattr(block, name)
    return ffn


APPEND_BLOCKS = Architecture(install_appended, {"block_start": "random"}, plan_blocks)
PREPEND_BLOCKS = Architecture(install_prepended, {"block_start": "random"}, plan_blocks)
