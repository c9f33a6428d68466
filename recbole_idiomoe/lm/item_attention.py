"""Attention masks within and between items, after IAM (arXiv 2603.19693).

IAM alternates layers with attention within items and layers with attention between items, but
prints no masks. The masks here are our reading: they are causal, and prompt tokens attend and are
attended to as in any decoder.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers
from recbole_idiomoe.lm.routing import current_routing

PROMPT = 0
PATTERNS = {"intra_inter": ("intra", "inter"), "own_text": ("own_text",)}
"""Attention patterns by name: the kinds of masks that consecutive layers use in turn."""


def item_mask(kind: str, segments: Tensor, token_types: Tensor) -> Tensor:
    """Return a mask (B, T, T) that is True where position ``i`` (row) attends to ``j`` (column).

    ============ ===============================================================
    kind         an item's token attends, at positions up to its own, to
    ============ ===============================================================
    intra        its own item, the prompt
    inter        other items, the prompt, itself
    own_text     its own item, the prompt; an item token other item tokens too
    ============ ===============================================================

    Args:
        kind: ``intra``, ``inter`` or ``own_text``.
        segments: (B, T), :data:`PROMPT`, or the number from 1 of the item that a token belongs to.
        token_types: (B, T), 0 text, 1 item.
    """
    row, column = segments.unsqueeze(2), segments.unsqueeze(1)
    seen = row == column
    if kind == "inter":
        seen = ~seen | torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    elif kind == "own_text":
        is_item = token_types.bool()
        seen = seen | (is_item.unsqueeze(2) & is_item.unsqueeze(1))
    return (seen | (row == PROMPT) | (column == PROMPT)).tril()


class ItemAttention:
    """Makes the masks of a batch, which replace the mask in each layer's attention.

    One object serves all layers. It keeps no masks: they are part of the batch's
    :class:`~recbole_idiomoe.lm.routing.TokenRouting`, where each layer's attention finds its own.

    Args:
        backbone: the decoder; hooks on its attention modules are installed here.
        pattern: a key of :data:`PATTERNS`.

    Raises:
        BackboneError: the attention implementation takes no additive mask.
    """

    def __init__(self, backbone: PreTrainedModel, pattern: str) -> None:
        self.kinds = PATTERNS[pattern]
        self.config = backbone.config
        self._check()
        for index, layer in enumerate(decoder_layers(backbone)):
            hook = partial(_take_mask, self.kinds[index % len(self.kinds)])
            attention_of(layer).register_forward_pre_hook(hook, with_kwargs=True)

    def masks(self, segments: Tensor, token_types: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The masks (B, 1, T, T) of a batch by kind; :func:`item_mask` describes the arguments."""
        self._check()
        masks = {}
        for kind in self.kinds:
            seen = item_mask(kind, segments, token_types).unsqueeze(1)
            # An additive mask, because eager attention takes no boolean one.
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            masks[kind] = mask.masked_fill_(~seen, torch.finfo(dtype).min)
        return masks

    def _check(self) -> None:
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise BackboneError(
                f"attention={self.config._attn_implementation!r} takes no mask between items; load "
                "the backbone with attn_implementation='sdpa'."
            )


def _take_mask(
    kind: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    masks = current_routing().masks
    return args, kwargs | ({"attention_mask": masks[kind]} if masks else {})
