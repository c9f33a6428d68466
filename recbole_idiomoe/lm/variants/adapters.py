"""PEFT's low-rank adapters, as the variants LoRALLM, E4SRec and CoVE use them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import MissingLibraryError
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.variants.dense import add_ffn_dropout

Projections = dict[str, nn.Linear | Conv1D]


def install_adapters(
    backbone: PreTrainedModel,
    config: IdiomoeConfig,
    projections: Projections,
    rank: int,
    alpha: int,
) -> list[nn.Module]:
    """Add ``alpha / rank * B A`` to each projection, in place. B starts as zero.

    The adapters are not merged, also not in a saved folder: its safetensors file holds them
    beside the projections, and the architecture in its configuration says how to rebuild them.
    PEFT freezes all other weights; that is undone here, because the setting ``freeze`` decides it.

    Args:
        projections: the linear maps to adapt, by their names in ``backbone``.

    Returns:
        The adapters' modules A, of ``rank`` rows, and B.

    Raises:
        MissingLibraryError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingLibraryError("low-rank adapters need PEFT: pip install peft") from error
    add_ffn_dropout(backbone, config)
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
                # transformers then does not draw these weights again.
                module._is_hf_initialized = True  # type: ignore[assignment]
            added.append(part)
    return added


def block_projections(backbone: PreTrainedModel) -> Projections:
    """The linear maps of all decoder blocks, by their names in ``backbone``."""
    return projections_in(backbone, decoder_layers(backbone))


def projections_in(backbone: PreTrainedModel, parts: Iterable[nn.Module]) -> Projections:
    """The linear maps inside ``parts`` of ``backbone``, by their names in ``backbone``."""
    inside = {id(module) for part in parts for module in part.modules()}
    return {
        name: module
        for name, module in backbone.named_modules()
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D))
    }
