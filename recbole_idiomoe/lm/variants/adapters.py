"""Variants with PEFT's low-rank adapters: LoRALLM (section 4.2.1), E4SRec and CoVE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import MissingLibraryError
from recbole_idiomoe.lm.architecture import Architecture, Setup
from recbole_idiomoe.lm.configuration import IdiomoeConfig, initial_std
from recbole_idiomoe.lm.decoder import backbone_ffns, decoder_layers, mark_initialized
from recbole_idiomoe.lm.experts import add_ffn_dropout
from recbole_idiomoe.lm.untied_tables import HashedItemTable, ProjectedItemTable
from recbole_idiomoe.lm.variants.budget import budget_to_match, check_match


def install_adapters(
    setup: Setup, parts: Iterable[nn.Module], rank: int, alpha: int
) -> list[nn.Module]:
    """Add ``alpha / rank * B A`` to each linear map in ``parts`` of the backbone; B starts as zero.

    The adapters are not merged, also not in a saved folder: its safetensors file holds them
    beside the projections, and the architecture in its configuration says how to rebuild them.
    PEFT freezes all other weights; that is undone here, because the setting ``freeze`` decides it.

    Returns the adapters' modules A, of ``rank`` rows, and B.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingLibraryError("low-rank adapters need PEFT: pip install peft") from error
    backbone = setup.backbone
    projections = _projections_in(backbone, parts)
    add_ffn_dropout(setup)
    trains = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    adapters = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(projections),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in projections.values()),
    )
    inject_adapter_in_model(adapters, backbone)
    for parameter, requires_grad in trains.items():
        parameter.requires_grad_(requires_grad)
    added = []
    for name in projections:
        adapted = backbone.get_submodule(name)
        for part in (adapted.lora_A, adapted.lora_B):
            assert isinstance(part, nn.Module)
            added.append(mark_initialized(part))
    return added


def _projections_in(
    backbone: PreTrainedModel, parts: Iterable[nn.Module]
) -> dict[str, nn.Linear | Conv1D]:
    """The linear maps inside ``parts``, by their names in ``backbone``."""
    inside = {module for part in parts for module in part.modules()}
    return {
        name: module
        for name, module in backbone.named_modules()
        if module in inside and isinstance(module, (nn.Linear, Conv1D))
    }


def plan_lora(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """Choose the ``rank`` that gives the adapters as many parameters as IDIOMoE's item experts.

    All projections of all blocks get the same rank, which may exceed the width of a small one.
    """
    budget = budget_to_match(backbone, config)
    projections = _projections_in(backbone, decoder_layers(backbone))
    # A is (rank, in) and B is (out, rank), so each rank costs in + out, the sum of the shape.
    per_rank = sum(sum(module.weight.shape) for module in projections.values())
    rank = max(1, round(budget.experts / per_rank))
    check_match(config.architecture, budget, rank * per_rank)
    return {"rank": rank}


def install_lora(setup: Setup) -> list[nn.Module]:
    """Adapt all linear maps of the blocks with the planned rank and a scale of 2."""
    rank = setup.config.architecture_args["rank"]
    return install_adapters(setup, decoder_layers(setup.backbone), rank, 2 * rank)


def install_given_rank(
    setup: Setup, *, parts_of: Callable[[PreTrainedModel], Iterable[nn.Module]]
) -> list[nn.Module]:
    """Adapt the linear maps in some parts, with the options ``lora_rank`` and ``lora_alpha``."""
    options = setup.config.architecture_args
    parts = parts_of(setup.backbone)
    return install_adapters(setup, parts, options["lora_rank"], options["lora_alpha"])


def projected_table(config: IdiomoeConfig) -> ProjectedItemTable:
    """A table for given vectors of width ``item_embedding_dim``."""
    width = config.item_embedding_dim or config.hidden_size
    return ProjectedItemTable(config.item_num, config.hidden_size, width, initial_std(config))


def hashed_table(config: IdiomoeConfig) -> HashedItemTable:
    """A table with the options ``item_hashes`` and ``item_compression``."""
    options = config.architecture_args
    hashing = {"hashes": options["item_hashes"], "compression": options["item_compression"]}
    return HashedItemTable(config.item_num, config.hidden_size, initial_std(config), **hashing)


LORA = Architecture(install_lora, plan=plan_lora)
E4SREC = Architecture(
    partial(install_given_rank, parts_of=backbone_ffns),
    {"lora_rank": 16, "lora_alpha": 16},
    item_table=projected_table,
)
COVE = Architecture(
    partial(install_given_rank, parts_of=decoder_layers),
    {"lora_rank": 16, "lora_alpha": 16, "item_hashes": 4, "item_compression": 2},
    item_table=hashed_table,
)
