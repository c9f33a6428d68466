"""Rows that one process has and others need: two collectives, each the other's gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_idiomoe.base.distributed import STUCK

_Map = Callable[[Tensor], Tensor]


class RowExchange:
    """Collectives of all ranks, in a process group of their own.

    Its order must be the same on all ranks, and the group of DDP has the gradients in it, whose
    place among these would depend on which weights a rank's batch leaves unused.

    Attributes:
        rank: this process's number.
        ranks: how many there are.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(timeout=STUCK)
        self.rank, self.ranks = dist.get_rank(self.group), dist.get_world_size(self.group)

    def sizes(self, count: int) -> list[int]:
        """Every rank's ``count``; between hosts alone, so that no GPU is waited for."""
        own = torch.tensor([count], device="cpu")
        every = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(every, own, group=self.group)
        return torch.cat(every).tolist()

    def gathered(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """All ranks' rows, in their order: (n, ...) -> (sum of ``sizes``, ...), differentiable."""
        there, back = self._both(sizes)
        found: Tensor = _Linear.apply(rows, there, back)
        return found

    def summed(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """This rank's rows of the sum of what all ranks have: the way back of :meth:`gathered`."""
        there, back = self._both(sizes)
        found: Tensor = _Linear.apply(rows, back, there)
        return found

    def _both(self, sizes: Sequence[int]) -> tuple[_Map, _Map]:
        """To all ranks, and back; each is the other's gradient."""
        return partial(self.gather, sizes=sizes), partial(self.sum_and_scatter, sizes=sizes)

    def swapped(self, blocks: Tensor) -> Tensor:
        """Block i of each goes to rank i: (ranks, ...) -> (ranks, ...), by where they are from."""
        received = torch.empty_like(blocks)
        dist.all_to_all_single(received, blocks, group=self.group)
        return received

    def gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """:meth:`gathered`, without a gradient."""
        parts = [rows.new_empty(max(sizes), *rows.shape[1:]) for _ in sizes]
        dist.all_gather(parts, _filled_up(rows, max(sizes)), group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum_and_scatter(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """:meth:`summed`, without a gradient."""
        parts = [_filled_up(part, max(sizes)) for part in rows.split(list(sizes))]
        return self.swapped(torch.stack(parts)).sum(dim=0)[: sizes[self.rank]]


class _Linear(torch.autograd.Function):
    """A linear map of rows, given with the way back of its gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: _Map, back: _Map) -> Tensor:
        ctx.back = back
        return there(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradient), None, None


def _filled_up(rows: Tensor, count: int) -> Tensor:
    """Zeros behind the last row, up to ``count``: ranks send as much as each other."""
    filling = rows.new_zeros(count - len(rows), *rows.shape[1:])
    return torch.cat((rows, filling)) if len(filling) else rows.contiguous()
