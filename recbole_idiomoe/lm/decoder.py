"""Access to the parts of a transformers decoder: blocks, FFNs, attention, embedding and head."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import BackboneError

# Names of an FFN's input projections, and of its output projection, by family.
LAYOUTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("c_fc",), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("fc1",), "fc2"),
)
ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
# cuDNN's kernel is left out: it plans anew for every shape, and every batch has its own length.
ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
SUPPORTED = "Qwen2, Qwen2.5, Qwen3, Llama, Mistral, Gemma, GPT-2, GPT-NeoX and Phi"


class _KernelChoice:
    """How many blocks of :func:`attention_kernels` are being executed, in all threads."""

    lock = threading.Lock()
    blocks = 0
    undo = ExitStack()


@contextmanager
def attention_kernels() -> Iterator[None]:
    """Inside the block, attention uses :data:`ATTENTION_KERNELS`.

    torch's choice of kernels is that of the whole process. Threads may be inside at the same time;
    the last one that leaves restores what the first one found.
    """
    with _KernelChoice.lock:
        if not _KernelChoice.blocks:
            _KernelChoice.undo.enter_context(sdpa_kernel(ATTENTION_KERNELS))
        _KernelChoice.blocks += 1
    try:
        yield
    finally:
        with _KernelChoice.lock:
            _KernelChoice.blocks -= 1
            if not _KernelChoice.blocks:
                _KernelChoice.undo.close()


class EmptyCache(DynamicCache):
    """A cache that stores nothing, so that attention is the same as without a cache.

    Without a cache, transformers checks in every forward pass whether sequences are packed. A
    GPU's host waits for that check, and a compiled decoder builds a mask because of it.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class ExtendedFFN(nn.Module):
    """The base class of FFNs that contain the backbone's own FFN and add to it."""

    own: ClassVar[str]
    """The name of the submodule that is the backbone's own FFN."""


def ffn_layout(module: nn.Module) -> tuple[tuple[str, ...], str] | None:
    """The row of :data:`LAYOUTS` that ``module`` follows; None if it follows none."""
    # FFNs of Bloom and Falcon have these names too, but take the residual as a second argument.
    if len(inspect.signature(module.forward).parameters) != 1:
        return None
    for inner, outer in LAYOUTS:
        if all(is_projection(getattr(module, name, None)) for name in (*inner, outer)):
            return inner, outer
    return None


def is_projection(module: nn.Module | None) -> bool:
    """Whether ``module`` is a linear map, also if PEFT has wrapped it in an adapter."""
    return isinstance(getattr(module, "base_layer", module), (nn.Linear, Conv1D))


def decoder_layers(backbone: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder's blocks, first to last.

    Raises:
        BackboneError: the model is not a decoder, or its blocks cannot be found.
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
    """Whether transformers' gradient checkpointing is on, which does not allow a cache."""
    layers = decoder_layers(backbone)
    return any(getattr(layer, "gradient_checkpointing", False) for layer in layers)


def ffn_name(layer: nn.Module) -> str | None:
    """The attribute of a decoder block that holds its FFN, plain or extended; None if none does."""
    for name, child in layer.named_children():
        if isinstance(child, ExtendedFFN) or ffn_layout(child) is not None:
            return name
    return None


def ffn_names(backbone: PreTrainedModel) -> list[str]:
    """Return the attribute that holds the FFN, for each block.

    Raises:
        BackboneError: an FFN follows none of :data:`LAYOUTS`.
    """
    names = [ffn_name(layer) for layer in decoder_layers(backbone)]
    if None in names:
        raise _unsupported(backbone, f"has an FFN of unknown layout in layer {names.index(None)}")
    return [name for name in names if name is not None]


def backbone_ffns(backbone: PreTrainedModel) -> list[nn.Module]:
    """The backbone's own FFN in each block; raises as :func:`ffn_names`."""
    found = map(getattr, decoder_layers(backbone), ffn_names(backbone))
    return [ffn.get_submodule(ffn.own) if isinstance(ffn, ExtendedFFN) else ffn for ffn in found]


def attention_of(layer: nn.Module) -> nn.Module:
    """Return the attention module of a decoder block.

    Raises:
        BackboneError: the attention has none of the :data:`ATTENTION_NAMES`.
    """
    for name in ATTENTION_NAMES:
        module = getattr(layer, name, None)
        if isinstance(module, nn.Module):
            return module
    raise BackboneError(
        f"the attention of {type(layer).__name__} is none of {', '.join(ATTENTION_NAMES)}; "
        "choose another backbone."
    )


def output_projection(ffn: nn.Module) -> nn.Linear | Conv1D:
    """The output projection of an FFN, which must follow one of :data:`LAYOUTS`."""
    layout = ffn_layout(ffn)
    assert layout is not None
    projection: nn.Linear | Conv1D = getattr(ffn, layout[1])
    return projection


def neuron_count(ffn: nn.Module) -> int:
    """The number of neurons of an FFN, which are the inputs of its output projection."""
    values = output_projection(ffn)
    return values.weight.shape[0 if isinstance(values, Conv1D) else 1]


def mark_initialized(module: nn.Module) -> nn.Module:
    """Mark the weights of ``module``, so that transformers does not draw them again; return it."""
    for part in module.modules():
        part._is_hf_initialized = True  # type: ignore[assignment]
    return module


def text_rms(backbone: PreTrainedModel) -> float:
    """The root mean square of the elements of the text embedding."""
    [weight] = backbone.get_input_embeddings().parameters()
    return float(weight.detach().float().square().mean().sqrt())


def check_head(backbone: PreTrainedModel) -> None:
    """Check that the backbone's logits are the output of its head, without any transformation.

    Raises:
        BackboneError: the backbone scales or caps its logits.
    """
    config = backbone.config
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        value = getattr(config, name, None)
        if value is not None and (value != 1 or name == "final_logit_softcapping"):
            raise BackboneError(
                f"backbone of type {config.model_type!r} alters its logits ({name}={value}), "
                "but item scores would stay unaltered; choose another backbone."
            )


def _unsupported(backbone: PreTrainedModel, what: str) -> BackboneError:
    return BackboneError(
        f"backbone of type {backbone.config.model_type!r} {what}; supported are {SUPPORTED}."
    )
