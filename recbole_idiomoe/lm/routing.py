"""Static routing by token type (section 3.2), computed once per batch for all layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokenRouting:
    """The expert of each position of the current batch.

    The model calls :meth:`set` once per forward pass, and all layers read the same order. It stays
    until the next :meth:`set`, so that a checkpointed layer finds it again in the backward pass.
    With gradient checkpointing, the backward pass must therefore come before the next forward pass.

    Before the first :meth:`set` and after :meth:`clear`, every position is text.

    Attributes:
        sizes: number of text and of item positions.
        order: (B * T,), text positions, then item positions; None for a batch of one type.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Send every position of any batch to the text expert."""
        self.shape: torch.Size | None = None
        self.sizes = (0, 0)
        self.only_items = False
        self.order: Tensor | None = None
        self.inverse: Tensor | None = None
        # Compiled layers read the number of text positions from its length, because they would
        # take an integer attribute as a constant.
        self.text_order: Tensor | None = None

    def set(self, token_types: Tensor, item_count: int | None = None) -> None:
        """Set the types of a batch.

        Args:
            token_types: (B, T), integer or boolean, 0 text, 1 item.
            item_count: number of items; None counts them, and a GPU's host waits for the result.
        """
        is_item = token_types.reshape(-1).bool()
        items = int(is_item.sum()) if item_count is None else item_count
        self.clear()
        self.shape = token_types.shape
        self.sizes = (is_item.numel() - items, items)
        self.only_items = self.sizes[0] == 0
        if all(self.sizes):
            self.order = torch.argsort(is_item, stable=True)
            self.inverse = torch.empty_like(self.order)
            self.inverse[self.order] = torch.arange(len(is_item), device=is_item.device)
            # A copy, because torch.compile cannot trace the length of a view.
            self.text_order = self.order[: self.sizes[0]].clone()

    def check(self, inputs: Tensor) -> None:
        """Raise a RuntimeError if ``inputs`` (B, T, ...) do not have the shape of the batch."""
        # A layer that is compiled for all shapes must not depend on this one.
        if torch.compiler.is_compiling():
            return
        if self.shape is not None and inputs.shape[:2] != self.shape:
            raise RuntimeError(
                f"the routing holds a batch of shape {tuple(self.shape)}, not "
                f"{tuple(inputs.shape[:2])}: call routing.set(token_types) before the trunk."
            )

    def dispatch(
        self, inputs: Tensor, text: Callable[[Tensor], Tensor], item: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Send text positions of ``inputs`` through ``text`` and item positions through ``item``.

        A batch of one type is not permuted, so that the result on text alone is bit for bit
        ``text(inputs)``. Both are position-wise functions, (N, ...) -> (N, *).

        Shapes: (B, T, ...) -> (B, T, *).

        Raises:
            RuntimeError: ``inputs`` does not have the shape of the batch.
        """
        self.check(inputs)
        if self.order is None or self.inverse is None or self.text_order is None:
            return item(inputs) if self.only_items else text(inputs)
        by_type = _Reorder.apply(inputs.flatten(0, 1), self.order, self.inverse)
        text_num = self.text_order.shape[0]
        outputs = torch.cat((text(by_type[:text_num]), item(by_type[text_num:])))
        inverse = self.inverse.unflatten(0, inputs.shape[:2])
        return _Reorder.apply(outputs, inverse, self.order)


class _Reorder(torch.autograd.Function):
    """``rows[order]`` for a permutation, with the gradient ``gradients[inverse]``.

    This is faster than autograd's indexing, which allows repeated indices and adds up gradients.
    ``order`` has the shape (N,), or (B, T) for outputs (B, T, ...).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.dims = order.dim()
        return rows[order]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients.flatten(0, ctx.dims - 1)[inverse], None, None
