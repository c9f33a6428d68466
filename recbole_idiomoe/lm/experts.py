"""The two-expert FFN, the construction of its item expert, and its installation (section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import BackboneError, SettingError
from recbole_idiomoe.lm.configuration import IdiomoeConfig, initial_std
from recbole_idiomoe.lm.decoder import SUPPORTED, ExtendedFFN, decoder_layers, ffn_layout, ffn_names
from recbole_idiomoe.lm.fused_ffn import can_fuse, fused_ffn
from recbole_idiomoe.lm.routing import TokenRouting


class TwoExpertFFN(ExtendedFFN):
    """Two FFNs with static routing: the token's type decides which one runs (section 3.2).

    Args:
        text_expert, item_expert: the backbone's own FFN and that of item tokens, of equal width.
        routing: the model's routing, shared by all layers.
        dropout: dropout probability on the output.

    Attributes:
        fused: whether inference uses the fused kernels if :func:`can_fuse` allows it.
    """

    fused = False

    def __init__(
        self,
        text_expert: nn.Module,
        item_expert: nn.Module,
        routing: TokenRouting,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.text_expert = text_expert
        self.item_expert = item_expert
        self.routing = routing
        self.dropout = dropout

    @property
    def original(self) -> nn.Module:
        return self.text_expert

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        arguments = hidden_states, self.routing, self.text_expert, self.item_expert
        if self.fused and not self.training and can_fuse(*arguments):
            return fused_ffn(*arguments)
        outputs = self.routing.dispatch(hidden_states, self.text_expert, self.item_expert)
        return F.dropout(outputs, self.dropout, self.training) if self.dropout else outputs


def kept_neurons(neurons: int, width: float) -> int:
    """Number of neurons of an item expert with relative ``width`` in (0, 1] beside ``neurons``."""
    return max(1, round(width * neurons))


def install_experts(
    backbone: PreTrainedModel,
    config: IdiomoeConfig,
    routing: TokenRouting,
    init: str = "copy",
    seed: int = 0,
) -> list[nn.Module]:
    """Give the layers ``config.expert_layers`` an item expert beside their FFN, in place.

    ``init`` is ``copy`` or ``random``, see :func:`make_item_expert`. Returns the item experts and
    raises as :func:`extend_ffns`.
    """

    def extend(text_expert: nn.Module, item_expert: nn.Module, _: torch.Generator) -> ExtendedFFN:
        return TwoExpertFFN(text_expert, item_expert, routing, config.dropout)

    return extend_ffns(backbone, config, init, seed, extend)


def extend_ffns(
    backbone: PreTrainedModel,
    config: IdiomoeConfig,
    init: str,
    seed: int,
    extend: Callable[[nn.Module, nn.Module, torch.Generator], ExtendedFFN],
) -> list[nn.Module]:
    """Replace the FFNs of the layers ``config.expert_layers`` by extended ones, in place.

    Args:
        extend: makes the extended FFN from the layer's own FFN, a second FFN that
            :func:`make_item_expert` has made, and a generator for other random weights.

    Returns:
        The second FFNs.

    Raises:
        BackboneError: an FFN follows none of :data:`LAYOUTS`; the decoder is then unchanged.
    """
    layers, names = decoder_layers(backbone), ffn_names(backbone)
    generator = torch.Generator().manual_seed(seed)
    std = initial_std(backbone.config)
    added: list[nn.Module] = []
    for index in config.expert_layers:
        ffn = getattr(layers[index], names[index])
        second = make_item_expert(ffn, config.expert_width, init, generator, std)
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
    for name in inner:
        _keep_outputs(getattr(expert, name), kept)
    _keep_inputs(values, kept)
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


def _keep_outputs(projection: nn.Module, kept: Tensor) -> None:
    """Keep some outputs of a projection, in place. Conv1D stores its weight as (in, out)."""
    transposed = isinstance(projection, Conv1D)
    projection.weight = _select(projection.weight, kept, 1 if transposed else 0)
    if projection.bias is not None:
        projection.bias = _select(projection.bias, kept, 0)
    setattr(projection, "nf" if transposed else "out_features", len(kept))


def _keep_inputs(projection: nn.Module, kept: Tensor) -> None:
    """Keep some inputs of a projection, in place; the bias is per output and stays."""
    transposed = isinstance(projection, Conv1D)
    projection.weight = _select(projection.weight, kept, 0 if transposed else 1)
    setattr(projection, "nx" if transposed else "in_features", len(kept))


def _select(weight: Tensor | nn.Module, kept: Tensor, dim: int) -> nn.Parameter:
    assert isinstance(weight, Tensor)
    selected = nn.Parameter(weight.index_select(dim, kept).contiguous())
    # transformers then does not draw this weight again.
    selected._is_hf_initialized = True  # type: ignore[attr-defined]
    return selected
