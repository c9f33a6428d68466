"""Attention masks within and between items, after IAM (arXiv 2603.19693).

IAM alternates layers with attention within items and layers with attention between items, but
prints no masks. The masks here are our reading: they are causal, and prompt tokens attend and are
attended to as in any decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers

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
    """The masks of the current batch, which replace the mask in each layer's attention.

    One object serves all layers. Masks stay until the next :meth:`set`, so that a checkpointed
    layer finds its mask again in the backward pass.

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
        self.masks: dict[str, Tensor] = {}
        for index, layer in enumerate(decoder_layers(backbone)):
            kind = self.kinds[index % len(self.kinds)]
            attention_of(layer).register_forward_pre_hook(self._hook(kind), with_kwargs=True)

    def clear(self) -> None:
        """Remove the masks, so that every layer attends as in the backbone."""
        self.masks = {}

    def set(self, segments: Tensor, token_types: Tensor, dtype: torch.dtype) -> None:
        """Make the masks of a batch; the arguments are described in :func:`item_mask`."""
        self._check()
        self.masks = {}
        for kind in self.kinds:
            seen = item_mask(kind, segments, token_types).unsqueeze(1)
            # An additive mask, because eager attention takes no boolean one.
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self.masks[kind] = mask.masked_fill_(~seen, torch.finfo(dtype).min)

    def _check(self) -> None:
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise BackboneError(
                f"attention={self.config._attn_implementation!r} takes no mask between items; load "
                "the backbone with attn_implementation='sdpa'."
            )

    def _hook(self, kind: str) -> Any:
        def take_mask(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, kwargs | ({"attention_mask": self.masks[kind]} if self.masks else {})

        return take_mask
