"""The two-expert FFN in two fused kernels, for inference in half precision on an NVIDIA GPU.

The time of a small batch depends on the number of kernels and not on arithmetic. Compared with one
FFN, two FFNs add a gather of the tokens by type, three matrix products, an activation, a
concatenation and a gather back. Here, the first kernel reads tokens by type, the second one writes
them back to their places, and both use the weights of each row block's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from recbole_idiomoe.lm.routing import TokenRouting

# FFNs that compute down_proj(act_fn(gate_proj(x)) * up_proj(x)) and nothing else.
GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
SILU = (nn.SiLU, type(ACT2FN["silu"]))
HALF = (torch.bfloat16, torch.float16)
# Only rows that are a multiple of 16 bytes are loaded while others are multiplied.
ALIGNED = 8
DEVICE = "cuda"
# In larger batches the matrix products take most of the time, and cuBLAS has faster ones.
MOST_TOKENS = 2048


def has_kernels(device: torch.device) -> bool:
    """Whether Triton can compile the kernels for ``device``; older GPUs lack bfloat16."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def can_fuse(
    hidden_states: Tensor, routing: TokenRouting, text_expert: nn.Module, item_expert: nn.Module
) -> bool:
    """Whether :func:`fused_ffn` can replace the two experts for this batch, without gradients.

    This is checked in every call, because an adapter, a hook, another dtype or another device may
    be set at any time.
    """
    dtype, accepted = _dtypes(hidden_states)
    if (
        torch.is_grad_enabled()
        or routing.order is None
        or routing.order.shape[0] > MOST_TOKENS
        or hidden_states.device.type != DEVICE
        or dtype not in HALF
        or not (_is_plain_swiglu(text_expert) and _is_plain_swiglu(item_expert))
    ):
        return False
    return all(
        tensor.dtype in accepted and tensor.device == hidden_states.device
        for tensor in (hidden_states, *_weights(text_expert), *_weights(item_expert))
    )


def fused_ffn(
    hidden_states: Tensor, routing: TokenRouting, text_expert: nn.Module, item_expert: nn.Module
) -> Tensor:
    """Run the expert of each token's type: (B, T, d) -> (B, T, d). :func:`can_fuse` must hold.

    Raises:
        SettingError: ``hidden_states`` does not have the shape of the routing's batch.
    """
    routing.check(hidden_states)
    assert routing.order is not None and routing.text_order is not None
    dtype, _ = _dtypes(hidden_states)
    rows, *weights = (
        tensor.to(dtype).contiguous()
        for tensor in (hidden_states.flatten(0, 1), *_weights(text_expert), *_weights(item_expert))
    )
    text_rows = routing.text_order.shape[0]
    outputs = two_expert_ffn(rows, routing.order, text_rows, weights[:3], weights[3:])
    return outputs.unflatten(0, hidden_states.shape[:2])


@torch.library.custom_op("recbole_idiomoe::two_expert_ffn", mutates_args=())
def two_expert_ffn(
    rows: Tensor, order: Tensor, text_rows: int, text: Sequence[Tensor], item: Sequence[Tensor]
) -> Tensor:
    """:func:`recbole_idiomoe.lm.ffn_kernels.two_expert_ffn` as one operator for torch.compile."""
    from recbole_idiomoe.lm import ffn_kernels

    return ffn_kernels.two_expert_ffn(rows, order, text_rows, text, item)


@two_expert_ffn.register_fake
def _(rows: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(rows)


def _dtypes(hidden_states: Tensor) -> tuple[torch.dtype, tuple[torch.dtype, ...]]:
    """The dtype in which ``nn.Linear`` computes, and the dtypes that it accepts as input."""
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device), (torch.float32, *HALF)
    return hidden_states.dtype, (hidden_states.dtype,)


def _projections(expert: nn.Module) -> list[nn.Module]:
    return [getattr(expert, name) for name in ("gate_proj", "up_proj", "down_proj")]


def _weights(expert: nn.Module) -> list[Tensor]:
    return [projection.weight for projection in _projections(expert)]  # type: ignore[misc]


def _is_plain_swiglu(expert: nn.Module) -> bool:
    """Whether ``expert`` is three plain linear maps and SiLU, without hooks on any of them."""
    return (
        type(expert).__name__ in GATED
        and isinstance(expert.act_fn, SILU)
        and not any(
            module._forward_pre_hooks or module._forward_hooks
            for module in (expert, *_projections(expert))
        )
        and all(
            # A projection with an adapter or quantisation has another class, or its weight has.
            type(projection) is nn.Linear
            and projection.bias is None
            and type(projection.weight) is nn.Parameter
            and all(size % ALIGNED == 0 for size in projection.weight.shape)
            for projection in _projections(expert)
        )
    )
