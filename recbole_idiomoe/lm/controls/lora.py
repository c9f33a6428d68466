"""PEFT's low-rank adapters: LoRALLM, with IDIOMoE's parameters, and those of E4SRec and CoVE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import MissingLibraryError
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.controls.budget import (
    check_match,
    check_something_to_match,
    expert_budget,
)
from recbole_idiomoe.lm.controls.dense import drop_ffn_outputs
from recbole_idiomoe.lm.decoder import backbone_ffns, decoder_layers
from recbole_idiomoe.lm.routing import TokenRouting


def plan_lora(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """The rank with which the adapters have as many parameters as IDIOMoE's item experts.

    Every projection of every block has the same one; it may exceed what a small projection
    could use.

    Raises:
        SettingError: no expert to match, or item experts too small for rank 1.
    """
    budget = expert_budget(backbone, config)
    check_something_to_match("lora", budget)
    # A of (rank, in) and B of (out, rank); either shape of a weight sums to in + out.
    per_rank = sum(sum(module.weight.shape) for module in _all_projections(backbone).values())
    rank = max(1, round(budget.experts / per_rank))
    check_match("lora", budget, rank * per_rank)
    return {"rank": rank}


def install_lora(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Adapt all linear layers of the blocks, with as many parameters as IDIOMoE adds, scaled by 2.

    Returns and raises as :func:`_adapt`.
    """
    rank = config.architecture_args["rank"]
    return _adapt(backbone, config, _all_projections(backbone), rank, 2 * rank)


def install_adapters(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Adapt all linear layers of the blocks by the rank that is set, as CoVE; as :func:`_adapt`."""
    rank, alpha = (config.architecture_args[name] for name in ("lora_rank", "lora_alpha"))
    return _adapt(backbone, config, _all_projections(backbone), rank, alpha)


def install_ffn_adapters(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Adapt the FFNs' layers by the rank that is set, as E4SRec does; as :func:`_adapt`."""
    rank, alpha = (config.architecture_args[name] for name in ("lora_rank", "lora_alpha"))
    return _adapt(backbone, config, _projections(backbone, backbone_ffns(backbone)), rank, alpha)


def _adapt(
    backbone: PreTrainedModel,
    config: IdiomoeConfig,
    projections: dict[str, nn.Linear | Conv1D],
    rank: int,
    alpha: int,
) -> list[nn.Module]:
    """Adapt ``projections`` by B A alpha / rank; B = 0, so the start is dense.

    The adapters stay apart, also in a saved folder: its one safetensors file holds them beside
    the projections they adapt, and the architecture in its configuration says how to put them
    together. PEFT would freeze the rest; that is for ``freeze`` to say here.

    Returns:
        The adapters' matrices A and B.

    Raises:
        MissingLibraryError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingLibraryError("low-rank adapters need PEFT: pip install peft") from error
    drop_ffn_outputs(backbone, config)
    trained = {name: p.requires_grad for name, p in backbone.named_parameters()}
    parameters = dict(backbone.named_parameters())
    adapters = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(projections),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in projections.values()),
    )
    inject_adapter_in_model(adapters, backbone)
    for name, requires_grad in trained.items():
        parameters[name].requires_grad_(requires_grad)
    added = []
    for name in projections:
        adapted = backbone.get_submodule(name)
        for part in (adapted.lora_A, adapted.lora_B):
            assert isinstance(part, nn.Module)
            for module in part.modules():
                # transformers' mark that a weight is not to be drawn again.
                module._is_hf_initialized = True  # type: ignore[assignment]
            added.append(part)
    return added


def _all_projections(backbone: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """The linear maps of the decoder's blocks, by their names in ``backbone``."""
    return _projections(backbone, decoder_layers(backbone))


def _projections(
    backbone: PreTrainedModel, parts: Iterable[nn.Module]
) -> dict[str, nn.Linear | Conv1D]:
    """The linear maps in ``parts`` of ``backbone``, by their names in it."""
    inside = {id(module) for part in parts for module in part.modules()}
    return {
        name: module
        for name, module in backbone.named_modules()
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D))
    }
