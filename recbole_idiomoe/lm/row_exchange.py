"""All-gather and reduce-scatter for rows of a sharded table; each is the other's gradient."""

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
    """Collectives of all ranks in a separate process group.

    Collectives of one group must run in the same order on all ranks. DDP's gradients would not keep
    an order with these, because it depends on the weights that a rank's batch leaves unused.

    Attributes:
        rank: the number of this process, from 0.
        ranks: the number of processes.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(timeout=STUCK)
        self.rank, self.ranks = dist.get_rank(self.group), dist.get_world_size(self.group)

    def sizes(self, count: int) -> list[int]:
        """Return the ``count`` of every rank, exchanged on the CPU so that no GPU has to wait."""
        own = torch.tensor([count], device="cpu")
        every = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(every, own, group=self.group)
        return torch.cat(every).tolist()

    def differentiable_all_gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """:meth:`all_gather` with a gradient."""
        gather, scatter = self._pair(sizes)
        found: Tensor = _LinearMap.apply(rows, gather, scatter)
        return found

    def differentiable_reduce_scatter(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """:meth:`reduce_scatter` with a gradient."""
        gather, scatter = self._pair(sizes)
        found: Tensor = _LinearMap.apply(rows, scatter, gather)
        return found

    def _pair(self, sizes: Sequence[int]) -> tuple[_Map, _Map]:
        return partial(self.all_gather, sizes=sizes), partial(self.reduce_scatter, sizes=sizes)

    def all_to_all(self, blocks: Tensor) -> Tensor:
        """Send block i of (ranks, ...) to rank i; return the received blocks by their sender."""
        received = torch.empty_like(blocks)
        dist.all_to_all_single(received, blocks, group=self.group)
        return received

    def all_gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Concatenate the rows of all ranks, in rank order: (n, ...) -> (sum of sizes, ...).

        ``sizes`` holds the number of rows of each rank.
        """
        parts = [rows.new_empty(max(sizes), *rows.shape[1:]) for _ in sizes]
        dist.all_gather(parts, _padded(rows, max(sizes)), group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def reduce_scatter(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Sum over ranks, then return this rank's rows: (sum of sizes, ...) -> (n, ...)."""
        parts = [_padded(part, max(sizes)) for part in rows.split(list(sizes))]
        return self.all_to_all(torch.stack(parts)).sum(dim=0)[: sizes[self.rank]]


class _LinearMap(torch.autograd.Function):
    """A linear map of rows, given as ``there``, whose gradient is the map ``back``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: _Map, back: _Map) -> Tensor:
        ctx.back = back
        return there(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradient), None, None


def _padded(rows: Tensor, count: int) -> Tensor:
    """Append zeros up to ``count`` rows, because all ranks must send the same number of rows."""
    filling = rows.new_zeros(count - len(rows), *rows.shape[1:])
    return torch.cat((rows, filling)) if len(filling) else rows.contiguous()
