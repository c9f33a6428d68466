"""Static routing by token type (section 3.2): one index per batch, shared by every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
        self.only_items = False
        self.order: Tensor | None = None
        self.inverse: Tensor | None = None
        # Its length is the number of text positions, as a compiled layer can read it: a number
        # here would be compiled in.
        self.text_order: Tensor | None = None

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
        self.only_items = self.sizes[0] == 0
        if all(self.sizes):
            self.order = torch.argsort(is_item, stable=True)
            self.inverse = torch.empty_like(self.order)
            self.inverse[self.order] = torch.arange(len(is_item), device=is_item.device)
            # A copy: of a view, torch.compile would not know where the length comes from.
            self.text_order = self.order[: self.sizes[0]].clone()

    def check(self, inputs: Tensor) -> None:
        """Raise a RuntimeError if ``inputs``, (B, T, ...), are not of the batch that was set."""
        # Compiled once for all shapes, a layer must not look at this one.
        if torch.compiler.is_compiling() or self.shape is None:
            return
        if inputs.shape[:2] != self.shape:
            raise RuntimeError(
                f"the routing holds a batch of shape {tuple(self.shape)}, not "
                f"{tuple(inputs.shape[:2])}: call routing.set(token_types) before the trunk."
            )

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
        self.check(inputs)
        if self.order is None or self.inverse is None or self.text_order is None:
            return item(inputs) if self.only_items else text(inputs)
        by_type = _Reorder.apply(inputs.flatten(0, 1), self.order, self.inverse)
        text_num = self.text_order.shape[0]
        outputs = torch.cat((text(by_type[:text_num]), item(by_type[text_num:])))
        inverse = self.inverse.unflatten(0, inputs.shape[:2])
        return _Reorder.apply(outputs, inverse, self.order)


class _Reorder(torch.autograd.Function):
    """``rows[order]`` for a permutation, whose gradient is ``gradients[inverse]``.

    Of any index autograd expects repetitions, and adds gradients up one by one.

    Args:
        rows: (N, ...).
        order: (N,) or, for outputs of that shape, (B, T).
        inverse: (N,).
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
