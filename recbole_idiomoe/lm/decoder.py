"""A decoder as transformers builds them: its blocks, FFNs, attention, embedding and head."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import BackboneError

# Projections into the neurons, then the one out of them.
LAYOUTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("c_fc",), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("fc1",), "fc2"),
)
ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
SUPPORTED = "Qwen2, Qwen2.5, Qwen3, Llama, Mistral, Gemma, GPT-2, GPT-NeoX and Phi"


class EmptyCache(DynamicCache):
    """A cache that keeps nothing: attention takes the keys and values at hand, as without one.

    Without a cache transformers looks in every forward pass whether positions start anew inside
    a sequence, which a GPU's host waits for, and which a compiled trunk answers with a mask.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class ExtendedFFN(nn.Module):
    """An FFN that keeps the backbone's and has something beside it."""

    @property
    def original(self) -> nn.Module:
        """The FFN that the backbone brought."""
        raise NotImplementedError


def ffn_layout(module: nn.Module) -> tuple[tuple[str, ...], str] | None:
    """The row of :data:`LAYOUTS` that ``module`` follows; None if it is no FFN of ours."""
    # Bloom's and Falcon's FFNs carry the names but take the residual as well.
    if len(inspect.signature(module.forward).parameters) != 1:
        return None
    for inner, outer in LAYOUTS:
        names = (*inner, outer)
        if all(is_projection(getattr(module, name, None)) for name in names):
            return inner, outer
    return None


def is_projection(module: nn.Module | None) -> bool:
    """Whether ``module`` is a linear map, adapted by PEFT (which keeps it inside) or not."""
    return isinstance(getattr(module, "base_layer", module), (nn.Linear, Conv1D))


def decoder_layers(backbone: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks, first to last.

    Raises:
        BackboneError: an encoder, an encoder-decoder, or a decoder of another build.
    """
    config = backbone.config
    trunk = backbone.base_model
    stacks = [
        child
        for child in trunk.children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if trunk is backbone or config.is_encoder_decoder or len(stacks) != 1:
        raise _unsupported(backbone, "is not a decoder-only model of a known build")
    return stacks[0]


def is_checkpointed(backbone: PreTrainedModel) -> bool:
    """Whether blocks are computed again in backward, and then take no cache."""
    layers = decoder_layers(backbone)
    return any(getattr(layer, "gradient_checkpointing", False) for layer in layers)


def ffn_name(layer: nn.Module) -> str | None:
    """Attribute of a decoder block that holds its FFN, plain or extended; None if none does."""
    for name, child in layer.named_children():
        if isinstance(child, ExtendedFFN) or ffn_layout(child) is not None:
            return name
    return None


def ffn_names(backbone: PreTrainedModel) -> list[str]:
    """Attribute that holds the FFN, for each block.

    Raises:
        BackboneError: an FFN that follows none of :data:`LAYOUTS`.
    """
    names = [ffn_name(layer) for layer in decoder_layers(backbone)]
    if None in names:
        raise _unsupported(backbone, f"has an FFN of unknown layout in layer {names.index(None)}")
    return [name for name in names if name is not None]


def backbone_ffns(backbone: PreTrainedModel) -> list[nn.Module]:
    """The FFN that the backbone brought, for each block; raises as :func:`ffn_names`."""
    ffns = zip(decoder_layers(backbone), ffn_names(backbone), strict=True)
    found = [getattr(layer, name) for layer, name in ffns]
    return [ffn.original if isinstance(ffn, ExtendedFFN) else ffn for ffn in found]


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention of a decoder block.

    Raises:
        BackboneError: it has an unknown name.
    """
    for name in ATTENTION_NAMES:
        module = getattr(layer, name, None)
        if isinstance(module, nn.Module):
            return module
    raise BackboneError(
        f"the attention of {type(layer).__name__} is none of {', '.join(ATTENTION_NAMES)}; "
        "choose another backbone."
    )


def neuron_count(ffn: nn.Module) -> int:
    """Neurons of an FFN that follows one of :data:`LAYOUTS`: inputs of its output projection."""
    layout = ffn_layout(ffn)
    assert layout is not None
    values = getattr(ffn, layout[1])
    return values.weight.shape[0 if isinstance(values, Conv1D) else 1]


def text_rms(backbone: PreTrainedModel) -> float:
    """Root mean square of the text embedding's elements."""
    [weight] = backbone.get_input_embeddings().parameters()
    return float(weight.detach().float().square().mean().sqrt())


def check_head(backbone: PreTrainedModel) -> None:
    """Refuse a backbone whose logits are not plainly what its head gives.

    Raises:
        BackboneError: it alters them.
    """
    config = backbone.config
    for name, neutral in (
        ("final_logit_softcapping", None),
        ("logits_scaling", 1),
        ("logit_scale", 1),
    ):
        value = getattr(config, name, neutral)
        if value not in (neutral, None):
            raise BackboneError(
                f"backbone of type {config.model_type!r} alters its logits ({name}={value}), "
                "which item scores would have to share; choose another backbone."
            )


def _unsupported(backbone: PreTrainedModel, what: str) -> BackboneError:
    return BackboneError(
        f"backbone of type {backbone.config.model_type!r} {what}; supported are {SUPPORTED}."
    )
