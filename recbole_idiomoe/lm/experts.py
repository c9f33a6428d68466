"""The two-expert FFN, how its item expert is made, and how both get into a decoder."""

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
from recbole_idiomoe.lm.decoder import (
    SUPPORTED,
    ExtendedFFN,
    decoder_layers,
    ffn_layout,
    ffn_names,
)
from recbole_idiomoe.lm.fused_ffn import applies, fused_ffn
from recbole_idiomoe.lm.routing import TokenRouting


class TwoExpertFFN(ExtendedFFN):
    """An FFN per token type; one of them runs for each token (section 3.2).

    Args:
        text_expert: the backbone's own FFN, kept as the object it is.
        item_expert: the FFN of item tokens, of the same input and output width.
        routing: the model's, shared by all layers.
        dropout: probability on the output, in training.

    Attributes:
        fused: whether inference runs both in fused kernels where it can.
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
        sides = hidden_states, self.routing, self.text_expert, self.item_expert
        if self.fused and not self.training and applies(*sides):
            return fused_ffn(*sides)
        outputs = self.routing.dispatch(hidden_states, self.text_expert, self.item_expert)
        return F.dropout(outputs, self.dropout, self.training) if self.dropout else outputs


def kept_neurons(neurons: int, width: float) -> int:
    """Neurons of an item expert of relative ``width`` beside a text expert of ``neurons``."""
    return max(1, round(width * neurons))


def install_experts(
    backbone: PreTrainedModel,
    config: IdiomoeConfig,
    routing: TokenRouting,
    init: str = "copy",
    seed: int = 0,
) -> list[nn.Module]:
    """Give the layers ``config.expert_layers`` an item expert beside their FFN, in place.

    Returns:
        The item experts.

    Raises:
        BackboneError: a layer whose FFN follows none of :data:`LAYOUTS`. Nothing has
            changed then.
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
        extend: makes one from a layer's FFN, a second FFN as :func:`make_item_expert` gives
            it, and the generator of whatever else is random.

    Returns:
        The second FFNs.

    Raises:
        BackboneError: a layer whose FFN follows none of :data:`LAYOUTS`. Nothing has
            changed then.
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
    """A copy of an FFN narrowed to ``round(width * m)`` of its ``m`` neurons, at least one.

    A neuron's value vector is its column of the output projection (section 3.3). With
    ``copy`` the neurons whose value vectors are longest stay, in their old order, so
    that full width is an exact copy; with ``random`` the narrowed copy's weights are
    drawn from N(0, std^2) and its biases are zero.

    Raises:
        BackboneError: ``text_expert`` follows none of :data:`LAYOUTS`.
        SettingError: an unknown ``init``.
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
    # The original may be frozen; its copy is there to be trained.
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
    """Give a projection weights from N(0, std^2) and a bias of zero."""
    # Drawn on the CPU: the same weights whatever the device.
    drawn = torch.empty(projection.weight.shape, device="cpu")
    projection.weight.copy_(drawn.normal_(0.0, std, generator=generator))
    if projection.bias is not None:
        projection.bias.zero_()


def _keep_outputs(projection: nn.Module, kept: Tensor) -> None:
    """Narrow a projection into the neurons; Conv1D stores its weight transposed, (in, out)."""
    transposed = isinstance(projection, Conv1D)
    projection.weight = _select(projection.weight, kept, 1 if transposed else 0)
    if projection.bias is not None:
        projection.bias = _select(projection.bias, kept, 0)
    setattr(projection, "nf" if transposed else "out_features", len(kept))


def _keep_inputs(projection: nn.Module, kept: Tensor) -> None:
    """Narrow the projection out of the neurons; its bias belongs to no neuron."""
    transposed = isinstance(projection, Conv1D)
    projection.weight = _select(projection.weight, kept, 0 if transposed else 1)
    setattr(projection, "nx" if transposed else "in_features", len(kept))


def _select(weight: Tensor | nn.Module, kept: Tensor, dim: int) -> nn.Parameter:
    assert isinstance(weight, Tensor)
    selected = nn.Parameter(weight.index_select(dim, kept).contiguous())
    # transformers' mark that a weight is not to be drawn again.
    selected._is_hf_initialized = True  # type: ignore[attr-defined]
    return selected
