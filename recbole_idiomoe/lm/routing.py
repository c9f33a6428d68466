"""Static routing by token type (section 3.2): one index per batch, shared by every layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class TokenRouting:
    """Who goes to which expert in the batch at hand.

    The model calls :meth:`set` once per forward pass; each layer then reads the same
    order, text positions first. The indices live until the next :meth:`set`, so that a
    checkpointed layer that is recomputed in backward still finds them. For the same
    reason two forward passes must not come before the backward pass of the first when
    gradient checkpointing is on.

    Before the first :meth:`set`, and after :meth:`clear`, every position is text.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Send every position of any batch to the text expert."""
        self.shape: torch.Size | None = None
        self.sizes = (0, 0)
        self.order: Tensor | None = None
        self.inverse: Tensor | None = None

    def set(self, token_types: Tensor, item_count: int | None = None) -> None:
        """Take the types of a batch.

        Args:
            token_types: (B, T), integer or boolean: 0 text, 1 item.
            item_count: how many of them are 1, which spares a GPU's host the wait for the
                answer; None: counted here.
        """
        is_item = token_types.reshape(-1).bool()
        items = int(is_item.sum()) if item_count is None else item_count
        self.clear()
        self.shape = token_types.shape
        self.sizes = (is_item.numel() - items, items)
        if all(self.sizes):
            self.order = torch.argsort(is_item, stable=True)
            self.inverse = torch.empty_like(self.order)
            self.inverse[self.order] = torch.arange(len(is_item), device=is_item.device)

    def dispatch(
        self, inputs: Tensor, text: Callable[[Tensor], Tensor], item: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Send text positions of ``inputs`` through ``text`` and item positions through ``item``.

        A batch of one type goes to its function as it is, unpermuted: on text alone
        the result is bit for bit that of ``text(inputs)``.

        Args:
            inputs: (B, T, ...).
            text, item: act on each position alone, (..., *) -> (..., *'), and agree in *'.

        Returns:
            (B, T, *').

        Raises:
            RuntimeError: ``inputs`` is not of the batch that was :meth:`set`.
        """
        if self.shape is None:
            return text(inputs)
        if inputs.shape[:2] != self.shape:
            raise RuntimeError(
                f"the routing holds a batch of shape {tuple(self.shape)}, not "
                f"{tuple(inputs.shape[:2])}: call routing.set(token_types) before the trunk."
            )
        if self.order is None or self.inverse is None:
            return item(inputs) if self.sizes[1] else text(inputs)
        sorted_inputs = inputs.flatten(0, 1).index_select(0, self.order)
        text_inputs, item_inputs = sorted_inputs.split(self.sizes)
        outputs = torch.cat((text(text_inputs), item(item_inputs)))
        return outputs.index_select(0, self.inverse).unflatten(0, self.shape)
