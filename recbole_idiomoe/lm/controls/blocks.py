"""AppendBlocks and PrependBlocks: IDIOMoE's parameters as further decoder blocks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.controls.budget import (
    TOLERANCE,
    check_match,
    check_something_to_match,
    expert_budget,
    ffn_size,
    parameter_count,
)
from recbole_idiomoe.lm.controls.dense import OutputDropout, drop_ffn_outputs
from recbole_idiomoe.lm.controls.wide_ffn import zero_output
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

BLOCK_STARTS = ("random", "identity")
# Fields of a decoder's configuration that size its FFN.
_WIDTHS = ("intermediate_size", "n_inner")


def plan_blocks(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """How many blocks hold as many parameters as IDIOMoE's item experts, and how wide an FFN.

    Blocks like the backbone's where a number of them comes within 2% of IDIOMoE; else as many
    as come nearest, with more or fewer neurons each.

    Returns:
        ``blocks``, ``neurons`` of each, and ``depth``, the layers of the decoder with them.

    Raises:
        SettingError: an unknown ``block_start``, no expert to match, or item experts too
            small for a block.
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
    """Put the planned blocks between the last block and the final norm; returns them."""
    return _install(backbone, config, at_end=True)


def install_prepended(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Put the planned blocks between the embedding and the first block; returns them."""
    return _install(backbone, config, at_end=False)


def _install(backbone: PreTrainedModel, config: IdiomoeConfig, at_end: bool) -> list[nn.Module]:
    plan = config.architecture_args
    count, depth = plan["blocks"], plan["depth"]
    layers = decoder_layers(backbone)
    old = list(layers)
    if len(old) == depth:
        # Built anew from a saved configuration, which counts the blocks in, at full width.
        old = old[:-count] if at_end else old[count:]
    else:
        _lengthen(backbone, count, at_end)
        config.backbone_config = backbone.config
    first = len(old) if at_end else 0
    new = [_block(backbone, type(old[0]), first + n, plan["neurons"]) for n in range(count)]
    for block in new:
        if plan["block_start"] == "identity":
            _silence(block)
        if config.dropout:
            _ffn(block).register_forward_hook(OutputDropout(config.dropout))
    # In place: the trunk's own list, which hooks and plans of parallelism may know.
    ordered = [*old, *new] if at_end else [*new, *old]
    del layers[:]
    layers.extend(ordered)
    for index, layer in enumerate(ordered):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    drop_ffn_outputs(backbone, config, before=0 if at_end else count)
    return list(new)


def _nearest_width(size: float, block: int, ffn: nn.Module) -> int:
    """Neurons with which a block has about ``size`` parameters, at least one."""
    neuron = ffn_size(ffn, 1) - ffn_size(ffn, 0)
    without = block - parameter_count(ffn) + ffn_size(ffn, 0)
    return max(1, round((size - without) / neuron))


def _lengthen(backbone: PreTrainedModel, count: int, at_end: bool) -> None:
    """Count the new blocks in, in the configuration that all parts of the backbone share."""
    config = backbone.config
    types = getattr(config, "layer_types", None)
    if types:
        more = [types[-1] if at_end else types[0]] * count
        config.layer_types = [*types, *more] if at_end else [*more, *types]
    config.num_hidden_layers += count


def _block(
    backbone: PreTrainedModel, layer_class: type[nn.Module], index: int, neurons: int
) -> nn.Module:
    """A block with random weights as the family draws them, its FFN ``neurons`` wide."""
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
        # transformers' mark that it is not to be drawn again.
        module._is_hf_initialized = True  # type: ignore[assignment]
    return block.to(device=backbone.device, dtype=backbone.dtype).train(backbone.training)


@torch.no_grad()
def _silence(block: nn.Module) -> None:
    """Zero what a block adds to the residual stream: its last projections and their biases."""
    *_, output = filter(is_projection, attention_of(block).children())
    for parameter in output.parameters():
        parameter.zero_()
    zero_output(_ffn(block))


def _ffn(block: nn.Module) -> nn.Module:
    name = ffn_name(block)
    assert name is not None and ffn_layout(getattr(block, name)) is not None
    ffn: nn.Module = getattr(block, name)
    return ffn
