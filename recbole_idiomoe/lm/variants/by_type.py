"""Modules that exist once per token type, shared by the variants MoA and MoT."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.lm.configuration import initial_std
from recbole_idiomoe.lm.decoder import is_projection
from recbole_idiomoe.lm.experts import draw_weights
from recbole_idiomoe.lm.routing import TokenRouting


class ByTokenType(nn.Module):
    """The backbone's own position-wise module for text tokens, and another one for item tokens."""

    def __init__(self, text: nn.Module, item: nn.Module, routing: TokenRouting) -> None:
        super().__init__()
        self.text = text
        self.item = item
        self.routing = routing

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T, ...)."""
        return self.routing.dispatch(hidden_states, self.text, self.item)


class Splitter:
    """Replaces modules of a backbone by :class:`ByTokenType` pairs.

    Args:
        init: ``copy`` or ``random``, the start of the item tokens' projections.

    Attributes:
        added: the item tokens' modules, in the order in which they were made.
    """

    def __init__(
        self, backbone: PreTrainedModel, routing: TokenRouting, init: str, seed: int
    ) -> None:
        self.routing = routing
        self.random = init == "random"
        self.generator = torch.Generator().manual_seed(seed)
        self.std = initial_std(backbone.config)
        self.added: list[nn.Module] = []

    def split_projections(self, parent: nn.Module) -> None:
        """Replace the linear maps that are direct children of ``parent``."""
        for name, child in list(parent.named_children()):
            if is_projection(child):
                self._split(parent, name, child, self.random)

    def split_norms(self, parent: nn.Module) -> None:
        """Replace the norms that are direct children of ``parent``; item norms start as copies."""
        for name, child in list(parent.named_children()):
            if is_norm(child):
                self._split(parent, name, child, random=False)

    def _split(self, parent: nn.Module, name: str, text: nn.Module, random: bool) -> None:
        # The original may be frozen, but its copy is trained.
        item = copy.deepcopy(text).requires_grad_(True)
        if random:
            assert isinstance(item, (nn.Linear, Conv1D))
            draw_weights(item, self.std, self.generator)
        setattr(parent, name, ByTokenType(text, item, self.routing).train(text.training))
        self.added.append(item)


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a LayerNorm or an RMSNorm of any family, by its class name."""
    return "norm" in type(module).__name__.lower()
