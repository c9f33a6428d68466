"""MoA and MoT: attention, norms and FFN per token type, and one attention over all tokens."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.configuration import IdiomoeConfig, initial_std
from recbole_idiomoe.lm.controls.dense import drop_ffn_outputs
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers, is_projection
from recbole_idiomoe.lm.experts import draw_weights, install_experts
from recbole_idiomoe.lm.routing import TokenRouting

# Norms inside an attention that see (B, T, heads, head_dim), before heads and positions swap.
_POSITIONWISE_NORMS = ("q_norm", "k_norm")


class ByTokenType(nn.Module):
    """A module that acts on each position alone, once for text and once for items.

    Args:
        text: the backbone's own, kept as the object it is.
        item: that of item tokens, of the same shapes.
        routing: the model's, shared by all layers.
    """

    def __init__(self, text: nn.Module, item: nn.Module, routing: TokenRouting) -> None:
        super().__init__()
        self.text = text
        self.item = item
        self.routing = routing

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T, ...)."""
        return self.routing.dispatch(hidden_states, self.text, self.item)


def install_moa(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Mixture of attention: q, k, v, o per token type in ``config.expert_layers``; FFN shared.

    Queries, keys and values of either type meet in one causal attention. Families that fuse
    q, k, v in one projection have that one twice. ``expert_width`` has no meaning here.

    Returns:
        The item tokens' projections, copies of the text tokens' or random as ``init`` says.

    Raises:
        BackboneError: an attention of unknown build.
    """
    drop_ffn_outputs(backbone, config)
    split = _Splitter(backbone, routing, init, seed)
    layers = decoder_layers(backbone)
    for index in config.expert_layers:
        split.projections(attention_of(layers[index]))
    return split.added


def install_mot(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Mixture of transformers: q, k, v, o, norms and FFN per token type; one attention.

    In ``config.expert_layers``; where there are any, the final norm too, as in Bagel. The FFN
    is IDIOMoE's, so ``expert_width`` and ``dropout`` mean what they mean there.

    Returns:
        The item tokens' modules; norms always start as copies.

    Raises:
        BackboneError: an attention of unknown build, or with a norm that mixes positions.
    """
    layers = decoder_layers(backbone)
    for layer in layers:
        for name, child in attention_of(layer).named_children():
            if _is_norm(child) and name not in _POSITIONWISE_NORMS:
                raise BackboneError(
                    f"backbone of type {backbone.config.model_type!r} has a norm {name!r} in its "
                    "attention that cannot be had per token type; choose another backbone."
                )
    added = install_experts(backbone, config, routing, init, seed)
    split = _Splitter(backbone, routing, init, seed + 1)
    for index in config.expert_layers:
        split.projections(attention_of(layers[index]))
        split.norms(attention_of(layers[index]))
        split.norms(layers[index])
    if config.expert_layers:
        split.norms(backbone.base_model)
    return added + split.added


class _Splitter:
    """Replaces modules by pairs of modules and remembers what it added."""

    def __init__(
        self, backbone: PreTrainedModel, routing: TokenRouting, init: str, seed: int
    ) -> None:
        self.routing = routing
        self.random = init == "random"
        self.generator = torch.Generator().manual_seed(seed)
        self.std = initial_std(backbone.config)
        self.added: list[nn.Module] = []

    def projections(self, parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            if is_projection(child):
                self._split(parent, name, child, self.random)

    def norms(self, parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            if _is_norm(child):
                self._split(parent, name, child, random=False)

    def _split(self, parent: nn.Module, name: str, text: nn.Module, random: bool) -> None:
        # The original may be frozen; its copy is there to be trained.
        item = copy.deepcopy(text).requires_grad_(True)
        if random:
            assert isinstance(item, (nn.Linear, Conv1D))
            draw_weights(item, self.std, self.generator)
        setattr(parent, name, ByTokenType(text, item, self.routing).train(text.training))
        self.added.append(item)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
