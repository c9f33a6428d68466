"""The two-expert FFN, the construction of its item expert, and its installation (section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import BackboneError, SettingError
from recbole_idiomoe.lm.architecture import Setup
from recbole_idiomoe.lm.configuration import initial_std
from recbole_idiomoe.lm.decoder import (
    SUPPORTED,
    ExtendedFFN,
    backbone_ffns,
    decoder_layers,
    ffn_layout,
    ffn_names,
)
from recbole_idiomoe.lm.fused_ffn import can_fuse, fused_ffn
from recbole_idiomoe.lm.routing import current_routing


class TwoExpertFFN(ExtendedFFN):
    """Two FFNs with static routing: the token's type decides which one runs (section 3.2).

    Args:
        text_expert, item_expert: the backbone's own FFN and that of item tokens, of equal width.
        dropout: dropout probability on the output.

    Attributes:
        fused: whether inference uses the fused kernels if :func:`can_fuse` allows it.
    """

    own = "text_expert"
    fused = False

    def __init__(
        self,
        text_expert: nn.Module,
        item_expert: nn.Module,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.text_expert = text_expert
        self.item_expert = item_expert
        self.dropout = dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        routing = current_routing()
        arguments = hidden_states, routing, self.text_expert, self.item_expert
        if self.fused and not self.training and can_fuse(*arguments):
            return fused_ffn(*arguments)
        outputs = routing.dispatch(hidden_states, self.text_expert, self.item_expert)
        return F.dropout(outputs, self.dropout, self.training)


def add_output_dropout(ffn: nn.Module, p: float) -> None:
    """Add dropout to the output of an FFN, as a hook that can be pickled."""
    ffn.register_forward_hook(partial(_drop_output, p))


def _drop_output(p: float, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return F.dropout(output, p, module.training)


def add_ffn_dropout(setup: Setup, offset: int = 0) -> None:
    """Add the dropout that IDIOMoE has on expert outputs to the backbone's own FFNs.

    Only the layers that would have experts get it, so that a control differs from IDIOMoE in the
    studied change alone. ``offset`` new blocks stand in front of the backbone's first one.
    """
    if setup.config.dropout:
        ffns = backbone_ffns(setup.backbone)
        for layer in setup.config.expert_layers:
            add_output_dropout(ffns[offset + layer], setup.config.dropout)


def kept_neurons(neurons: int, width: float) -> int:
    """Number of neurons of an item expert with relative ``width`` in (0, 1] beside ``neurons``."""
    return max(1, round(width * neurons))


def install_experts(setup: Setup) -> list[nn.Module]:
    """Give the layers ``config.expert_layers`` an item expert beside their FFN; return these."""

    def extend(text_expert: nn.Module, item_expert: nn.Module, _: torch.Generator) -> ExtendedFFN:
        return TwoExpertFFN(text_expert, item_expert, setup.config.dropout)

    return extend_ffns(setup, extend)


def extend_ffns(
    setup: Setup, extend: Callable[[nn.Module, nn.Module, torch.Generator], ExtendedFFN]
) -> list[nn.Module]:
    """Replace the FFNs of the layers ``config.expert_layers`` by extended ones, in place.

    ``extend`` makes the extended FFN from the layer's own FFN, a second FFN that
    :func:`make_item_expert` has made, and a generator for other random weights. Returns the second
    FFNs. If an FFN follows none of :data:`LAYOUTS`, a BackboneError leaves the decoder unchanged.
    """
    layers, names = decoder_layers(setup.backbone), ffn_names(setup.backbone)
    generator = torch.Generator().manual_seed(setup.seed)
    std = initial_std(setup.backbone.config)
    added: list[nn.Module] = []
    for index in setup.config.expert_layers:
        ffn = getattr(layers[index], names[index])
        second = make_item_expert(ffn, setup.config.expert_width, setup.init, generator, std)
        extended = extend(ffn, second, generator)
        setattr(layers[index], names[index], extended.train(ffn.training))
        added.append(second)
    return added


@torch.no_grad()
def make_item_expert(
    text_expert: nn.Module,
    width: float,
    init: str = "copy",
    generator: torch.Generator | None = None,
    std: float = 0.02,
) -> nn.Module:
    """Copy an FFN and keep ``round(width * m)`` of its ``m`` neurons, at least one.

    The neurons with the longest value vectors are kept, in their order, so that a width of 1 gives
    an exact copy. A neuron's value vector is its column of the output projection (section 3.3.1).

    Args:
        width: share of the neurons to keep, in (0, 1].
        init: ``copy`` keeps the weights; ``random`` draws them from N(0, std^2), with zero biases.
        generator: source of random weights; None for the global generator.

    Raises:
        BackboneError: ``text_expert`` follows none of :data:`LAYOUTS`.
        SettingError: ``init`` is unknown.
    """
    if init not in ("copy", "random"):
        raise SettingError(f"expert_init={init!r} is neither 'copy' nor 'random'.")
    layout = ffn_layout(text_expert)
    if layout is None:
        raise BackboneError(
            f"{type(text_expert).__name__} is not an FFN that can be copied; supported are those "
            f"of {SUPPORTED}."
        )
    inner, outer = layout
    expert = copy.deepcopy(text_expert)
    # The original may be frozen, but its copy is trained.
    expert.requires_grad_(True)
    values = getattr(expert, outer)
    lengths = values.weight.float().norm(dim=1 if isinstance(values, Conv1D) else 0)
    kept = lengths.topk(kept_neurons(len(lengths), width)).indices.sort().values
    for name in (*inner, outer):
        _keep_neurons(getattr(expert, name), kept, of_outputs=name != outer)
    if hasattr(expert, "intermediate_size"):
        expert.intermediate_size = len(kept)  # type: ignore[assignment]
    if init == "random":
        for name in (*inner, outer):
            draw_weights(getattr(expert, name), std, generator)
    return expert


@torch.no_grad()
def draw_weights(
    projection: nn.Linear | Conv1D, std: float, generator: torch.Generator | None
) -> None:
    """Draw a projection's weights from N(0, std^2), in place, and set its bias to zero."""
    # Drawn on the CPU, so that weights do not depend on the device.
    drawn = torch.empty(projection.weight.shape, device="cpu")
    projection.weight.copy_(drawn.normal_(0.0, std, generator=generator))
    if projection.bias is not None:
        projection.bias.zero_()


def _keep_neurons(projection: nn.Linear | Conv1D, kept: Tensor, *, of_outputs: bool) -> None:
    """Keep some neurons, which are a projection's outputs or else its inputs, in place."""
    stores_inputs_first = isinstance(projection, Conv1D)
    dims = {"weight": 0 if of_outputs != stores_inputs_first else 1}
    if of_outputs and projection.bias is not None:
        dims["bias"] = 0
    for name, dim in dims.items():
        selected = nn.Parameter(getattr(projection, name).index_select(dim, kept).contiguous())
        # transformers then does not draw this weight again.
        selected._is_hf_initialized = True  # type: ignore[attr-defined]
        setattr(projection, name, selected)
    if stores_inputs_first:
        projection.nx, projection.nf = projection.weight.shape
    else:
        projection.out_features, projection.in_features = projection.weight.shape
