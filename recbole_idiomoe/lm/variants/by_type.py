"""MoA and MoT: modules of the decoder that exist once per token type (section 4.2.1)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.architecture import Architecture, Setup
from recbole_idiomoe.lm.configuration import initial_std
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers, is_projection
from recbole_idiomoe.lm.experts import add_ffn_dropout, draw_weights, install_experts
from recbole_idiomoe.lm.routing import current_routing

# Norms of queries and keys that see (B, T, heads, head_dim), before heads and positions swap.
_POSITIONWISE_NORMS = ("q_norm", "k_norm")


class ByTokenType(nn.Module):
    """The backbone's own position-wise module for text tokens, and another one for item tokens."""

    def __init__(self, text: nn.Module, item: nn.Module) -> None:
        super().__init__()
        self.text = text
        self.item = item

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T, ...)."""
        return current_routing().dispatch(hidden_states, self.text, self.item)


class _Splitter:
    """Replaces modules by :class:`ByTokenType` pairs; ``added`` lists the item tokens' modules."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.generator = torch.Generator().manual_seed(setup.seed)
        self.added: list[nn.Module] = []

    def split(self, parent: nn.Module, kind: Callable[[nn.Module], bool]) -> None:
        """Replace the direct children of ``parent`` that are of a kind."""
        for name, text in list(parent.named_children()):
            if not kind(text):
                continue
            # The original may be frozen, but its copy is trained.
            item = copy.deepcopy(text).requires_grad_(True)
            if self.setup.init == "random" and isinstance(item, (nn.Linear, Conv1D)):
                draw_weights(item, initial_std(self.setup.backbone.config), self.generator)
            pair = ByTokenType(text, item)
            setattr(parent, name, pair.train(text.training))
            self.added.append(item)


def _is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a LayerNorm or an RMSNorm of any family, by its class name."""
    return "norm" in type(module).__name__.lower()


def install_moa(setup: Setup) -> list[nn.Module]:
    """Give q, k, v and o a projection per token type in the layers ``config.expert_layers``.

    Queries, keys and values of both types meet in one causal attention; the FFN is shared.
    Families that fuse q, k and v in one projection get that projection twice. ``expert_width`` is
    not used. Returns the item tokens' projections, which start as ``setup.init`` says.
    """
    add_ffn_dropout(setup)
    splitter = _Splitter(setup)
    layers = decoder_layers(setup.backbone)
    for index in setup.config.expert_layers:
        splitter.split(attention_of(layers[index]), is_projection)
    return splitter.added


def install_mot(setup: Setup) -> list[nn.Module]:
    """Give the layers ``config.expert_layers`` projections, norms and an FFN per token type.

    Tokens of both types meet in one causal attention. If any layer is changed, the final norm is
    per token type too, as in Bagel. The FFN is IDIOMoE's two-expert FFN, so ``expert_width`` and
    ``dropout`` have the same meaning as in IDIOMoE. Returns the item tokens' modules; their norms
    always start as copies. Raises a BackboneError for norms that mix positions.
    """
    backbone, chosen = setup.backbone, setup.config.expert_layers
    layers = decoder_layers(backbone)
    for layer in layers:
        for name, child in attention_of(layer).named_children():
            if _is_norm(child) and name not in _POSITIONWISE_NORMS:
                raise BackboneError(
                    f"backbone of type {backbone.config.model_type!r} has a norm {name!r} in its "
                    "attention that cannot be had per token type; choose another backbone."
                )
    added = install_experts(setup)
    splitter = _Splitter(replace(setup, seed=setup.seed + 1))
    for index in chosen:
        splitter.split(attention_of(layers[index]), is_projection)
        splitter.split(attention_of(layers[index]), _is_norm)
        splitter.split(layers[index], _is_norm)
    if chosen:
        splitter.split(backbone.base_model, _is_norm)
    return added + splitter.added


MOA = Architecture(install_moa)
MOT = Architecture(install_mot)
