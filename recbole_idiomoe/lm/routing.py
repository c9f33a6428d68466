"""Static routing by token type (section 3.2), computed once per batch for all layers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_idiomoe.base.errors import SettingError


class TokenRouting:
    """The expert of each position of one batch. It does not change once it is made.

    A forward pass makes one, hands it to every block of the decoder as an argument, and the block
    hands it to its modules through :func:`routed`. Nothing of a batch is kept on the model, so
    that several threads may use one model, and a block that is computed again in the backward pass
    is given its own batch's routing again.

    Args:
        token_types: (B, T), integer or boolean, 0 text, 1 item; None sends every position of any
            batch to the text expert.
        item_count: number of items; None counts them, and a GPU's host waits for the result.
        masks: attention masks of the batch by kind, see
            :class:`~recbole_idiomoe.lm.item_attention.ItemAttention`; None for none.

    Attributes:
        sizes: number of text and of item positions.
        order: (B * T,), text positions, then item positions; None for a batch of one type.
    """

    def __init__(
        self,
        token_types: Tensor | None = None,
        item_count: int | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.shape: torch.Size | None = None
        self.sizes = (0, 0)
        self.only_items = False
        self.order: Tensor | None = None
        self.inverse: Tensor | None = None
        # Compiled layers read the number of text positions from its length, because they would
        # take an integer attribute as a constant.
        self.text_order: Tensor | None = None
        self.masks = dict(masks or {})
        if token_types is None:
            return
        is_item = token_types.reshape(-1).bool()
        items = int(is_item.sum()) if item_count is None else item_count
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
        """Raise a SettingError if ``inputs`` (B, T, ...) do not have the shape of the batch."""
        # A layer that is compiled for all shapes must not depend on this one.
        if torch.compiler.is_compiling():
            return
        if self.shape is not None and inputs.shape[:2] != self.shape:
            raise SettingError(
                f"token_types of shape {tuple(self.shape)} do not fit tokens of shape "
                f"{tuple(inputs.shape[:2])}; give one type per token, 0 text, 1 item."
            )

    def dispatch(
        self, inputs: Tensor, text: Callable[[Tensor], Tensor], item: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Send text positions of ``inputs`` through ``text`` and item positions through ``item``.

        A batch of one type is not permuted, so that the result on text alone is bit for bit
        ``text(inputs)``. Both are position-wise functions, (N, ...) -> (N, *).

        Shapes: (B, T, ...) -> (B, T, *).

        Raises:
            SettingError: ``inputs`` does not have the shape of the batch.
        """
        self.check(inputs)
        if self.order is None or self.inverse is None or self.text_order is None:
            return item(inputs) if self.only_items else text(inputs)
        by_type = _Reorder.apply(inputs.flatten(0, 1), self.order, self.inverse)
        text_num = self.text_order.shape[0]
        outputs = torch.cat((text(by_type[:text_num]), item(by_type[text_num:])))
        inverse = self.inverse.unflatten(0, inputs.shape[:2])
        return _Reorder.apply(outputs, inverse, self.order)


ALL_TEXT = TokenRouting()
"""Sends every position of any batch to the text expert."""


class _Current(threading.local):
    """The routing that the modules of a decoder use, one for each thread."""

    def __init__(self) -> None:
        self.routing = ALL_TEXT


# Not a ContextVar, which torch.compile cannot trace.
_current = _Current()


def current_routing() -> TokenRouting:
    """The routing of the innermost :func:`routed` block of this thread; else :data:`ALL_TEXT`."""
    return _current.routing


@contextmanager
def routed(routing: TokenRouting) -> Iterator[None]:
    """Inside the block, modules with two experts route as ``routing`` says, in this thread only."""
    outer = _current.routing
    _current.routing = routing
    try:
        yield
    finally:
        _current.routing = outer


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
