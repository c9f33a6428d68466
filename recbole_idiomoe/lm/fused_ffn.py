"""Both experts in two kernels instead of two FFNs: inference in half precision on an NVIDIA GPU.

A small batch is bound by its kernels, not by arithmetic. Beside one FFN, two take a gather of
the tokens by type, three more products of few rows, another activation, a concatenation and a
gather back. Here the first kernel reads tokens by type, the second writes them back in place,
and both give each block of rows the weights of its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from recbole_idiomoe.lm.routing import TokenRouting

# FFNs that compute down_proj(act_fn(gate_proj(x)) * up_proj(x)) and nothing else.
GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
SILU = (nn.SiLU, type(ACT2FN["silu"]))
DTYPES = (torch.bfloat16, torch.float16)
DEVICE = "cuda"
# Triton comes with torch where torch can use it. Set to False, both experts run as they are.
available = torch.version.cuda is not None and find_spec("triton") is not None
# In larger batches the products outweigh what is around them: two FFNs cost what one does.
MOST_ROWS = 4096


def applies(
    hidden_states: Tensor, routing: TokenRouting, text_expert: nn.Module, item_expert: nn.Module
) -> bool:
    """Whether :func:`fused_ffn` can take the place of the experts, with nothing to differentiate.

    Asked at every call: an adapter, another dtype or device may come at any time.
    """
    return (
        available
        and hidden_states.device.type == DEVICE
        and hidden_states.dtype in DTYPES
        and not torch.is_grad_enabled()
        and routing.order is not None
        and routing.order.shape[0] <= MOST_ROWS
        and all(_is_plain_swiglu(expert, hidden_states) for expert in (text_expert, item_expert))
        and _has_kernels(hidden_states.device)
    )


def fused_ffn(
    hidden_states: Tensor, routing: TokenRouting, text_expert: nn.Module, item_expert: nn.Module
) -> Tensor:
    """The expert of each token's type, (B, T, d) -> (B, T, d), where :func:`applies` says so.

    Hooks on the experts and on their projections are not called.
    """
    routing.check(hidden_states)
    assert routing.order is not None and routing.text_order is not None
    rows = hidden_states.flatten(0, 1)
    text_rows = routing.text_order.shape[0]
    text, item = _weights(text_expert), _weights(item_expert)
    outputs = two_expert_ffn(rows, routing.order, text_rows, text, item)
    return outputs.unflatten(0, hidden_states.shape[:2])


@torch.library.custom_op("recbole_idiomoe::two_expert_ffn", mutates_args=())
def two_expert_ffn(
    rows: Tensor, order: Tensor, text_rows: int, text: Sequence[Tensor], item: Sequence[Tensor]
) -> Tensor:
    """See :func:`recbole_idiomoe.lm.ffn_kernels.two_expert_ffn`; to a compiler one operator."""
    from recbole_idiomoe.lm import ffn_kernels

    return ffn_kernels.two_expert_ffn(
        rows.contiguous(),
        order,
        text_rows,
        [weight.contiguous() for weight in text],
        [weight.contiguous() for weight in item],
    )


@two_expert_ffn.register_fake
def _(
    rows: Tensor, order: Tensor, text_rows: int, text: Sequence[Tensor], item: Sequence[Tensor]
) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def _projections(expert: nn.Module) -> list[nn.Module | None]:
    return [getattr(expert, name, None) for name in ("gate_proj", "up_proj", "down_proj")]


def _weights(expert: nn.Module) -> list[Tensor]:
    return [projection.weight for projection in _projections(expert)]  # type: ignore


def _is_plain_swiglu(expert: nn.Module, hidden_states: Tensor) -> bool:
    """Whether ``expert`` is a SwiGLU FFN of three plain matrices that fit ``hidden_states``."""
    return (
        type(expert).__name__ in GATED
        and isinstance(expert.act_fn, SILU)
        and all(
            # An adapted or quantized projection is another class, or its weight is.
            type(projection) is nn.Linear
            and projection.bias is None
            and type(projection.weight) is nn.Parameter
            and projection.weight.dtype == hidden_states.dtype
            and projection.weight.device == hidden_states.device
            for projection in _projections(expert)
        )
    )


@torch.compiler.assume_constant_result
def _has_kernels(device: torch.device) -> bool:
    """Whether Triton compiles for this GPU; older ones have no bf16 products either."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
