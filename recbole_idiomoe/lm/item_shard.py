"""An item table sharded over processes: vocabulary-parallel embedding, cross entropy and scores.

Each rank holds the same number of rows, with their gradients and optimizer state, and processes a
share of the users. All ranks use the table at the same time: states and item ids are gathered on
all ranks, each rank computes the part of its own rows, and the parts are combined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recbole_idiomoe.base.distributed import STUCK, OwnRows
from recbole_idiomoe.lm.embedding import ItemTable, weighted_sums
from recbole_idiomoe.lm.item_loss import in_chunks

_Map = Callable[[Tensor, Sequence[int]], Tensor]


class RowExchange:
    """Collectives of all ranks in a separate process group, for rows of a sharded table.

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

    def all_gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Concatenate the rows of all ranks, in rank order: (n, ...) -> (sum of sizes, ...).

        ``sizes`` holds the number of rows of each rank. The gradient is :meth:`reduce_scatter`.
        """
        return _LinearMap.apply(rows, sizes, self._gather, self._scatter)  # type: ignore[no-any-return]

    def reduce_scatter(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Sum over ranks, then return this rank's rows: (sum of sizes, ...) -> (n, ...).

        The gradient is :meth:`all_gather`.
        """
        return _LinearMap.apply(rows, sizes, self._scatter, self._gather)  # type: ignore[no-any-return]

    def all_to_all(self, blocks: Tensor) -> Tensor:
        """Send block i of (ranks, ...) to rank i; return the received blocks by their sender."""
        received = torch.empty_like(blocks)
        dist.all_to_all_single(received, blocks, group=self.group)
        return received

    def _gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        parts = [rows.new_empty(max(sizes), *rows.shape[1:]) for _ in sizes]
        dist.all_gather(parts, _padded(rows, max(sizes)), group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def _scatter(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        parts = [_padded(part, max(sizes)) for part in rows.split(list(sizes))]
        return self.all_to_all(torch.stack(parts)).sum(dim=0)[: sizes[self.rank]]


class _LinearMap(torch.autograd.Function):
    """A linear map of rows, given as ``there``, whose gradient is the map ``back``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], there: _Map, back: _Map) -> Tensor:
        ctx.sizes, ctx.back = sizes, back
        return there(rows, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradient, ctx.sizes), None, None, None


def _padded(rows: Tensor, count: int) -> Tensor:
    """Append zeros up to ``count`` rows, because all ranks must send the same number of rows."""
    filling = rows.new_zeros(count - len(rows), *rows.shape[1:])
    return torch.cat((rows, filling)) if len(filling) else rows.contiguous()


class ItemTableShard(ItemTable):
    """One rank's rows of an :class:`ItemTable`. Every method is a collective call of all ranks.

    It supports training and ranking, but neither :meth:`grow` nor :meth:`weight`. A state
    dictionary that it loads must hold the whole table.

    Args:
        table: the whole table, equal on every rank and not factorised.
        exchange: the collectives of the ranks.
    """

    def __init__(self, table: ItemTable, exchange: RowExchange) -> None:
        nn.Module.__init__(self)
        self.item_num, self.hidden_size, self.std = table.item_num, table.hidden_size, table.std
        self.up = None
        size = -(-self.item_num // exchange.ranks)
        self.exchange = exchange
        self.own = OwnRows(exchange.rank, size, self.item_num)
        self.rows = nn.Parameter(self.own.of(table.rows.detach()))
        self.rows.own_rows = self.own  # type: ignore[attr-defined]
        # The losses of all ranks reach these rows, scaled by the number of ranks for DDP's mean.
        self.rows.register_hook(lambda gradient: gradient / exchange.ranks)

    def forward(self, items: Tensor) -> Tensor:
        wanted = items.flatten().unsqueeze(1)
        sizes = self.exchange.sizes(len(wanted))
        everywhere = self.exchange.all_gather(wanted, sizes)
        ones = torch.ones_like(everywhere, dtype=torch.float32)
        vectors = self.exchange.reduce_scatter(self._own_weighted_sums(everywhere, ones), sizes)
        return vectors.to(self.rows.dtype).view(*items.shape, self.hidden_size)

    def cross_entropy(self, hidden_states: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """Cross entropy over all items with soft targets, in nats.

        Memory is bounded as in :func:`~recbole_idiomoe.lm.item_loss.summed_cross_entropy`.

        Args:
            hidden_states: (N, d), this rank's positions.
            items, weights: (N, k), the items with a target probability at each position, and these
                probabilities, float32.

        Returns:
            (N,), the cross entropy of each position.
        """
        sizes = self.exchange.sizes(len(items))
        first = sum(sizes[: self.exchange.rank])
        with torch.autocast(hidden_states.device.type, enabled=False):
            states = self.exchange.all_gather(hidden_states.float(), sizes)
            own_sums = torch.cat(in_chunks(self._logsumexp, self.own.size, states))
            all_sums = self.exchange.all_gather(own_sums.unsqueeze(0), [1] * self.exchange.ranks)
            normalisers = all_sums[:, first : first + len(items)].logsumexp(dim=0)
            wanted = (self.exchange.all_gather(each, sizes) for each in (items, weights))
            scores = (states * self._own_weighted_sums(*wanted)).sum(dim=1)
            return normalisers - self.exchange.reduce_scatter(scores, sizes)

    @torch.no_grad()
    def logits(self, hidden_states: Tensor) -> Tensor:
        """All items' scores for this rank's states, without gradients: (n, d) -> (n, item_num)."""
        sizes = self.exchange.sizes(len(hidden_states))
        with torch.autocast(hidden_states.device.type, enabled=False):
            states = self.exchange.all_gather(hidden_states.float(), sizes)
            blocks = states.new_zeros(len(sizes), max(sizes), self.own.size)
            # One product per rank, as in one process, because a larger product may round
            # differently.
            for block, own_states in zip(blocks, states.split(sizes), strict=True):
                block[: len(own_states)] = F.linear(own_states, self.rows.float())
        by_user = self.exchange.all_to_all(blocks).transpose(0, 1)
        scores = by_user[: len(hidden_states)].flatten(1)[:, : self.item_num]
        scores[..., 0] = -torch.inf
        return scores

    def _logsumexp(self, states: Tensor) -> Tensor:
        """The logsumexp of the scores of this rank's items: (n, d) -> (n,)."""
        scores = F.linear(states, self.rows.float())
        # Finite, because a rank may hold no real item, and its gradient would then be nan.
        nothing = torch.finfo(scores.dtype).min
        if self.own.rank == 0:
            scores[:, 0] = nothing
        scores[:, max(0, self.item_num - self.own.start) :] = nothing
        return scores.logsumexp(dim=1)

    def _own_weighted_sums(self, items: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of the items' vectors on this rank: (n, k), (n, k) -> (n, d)."""
        is_own = (items // self.own.size == self.own.rank) & (items > 0)
        return weighted_sums(self.rows, items % self.own.size, weights * is_own)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        name = f"{prefix}rows"
        if name in state_dict:
            state_dict = {**state_dict, name: self.own.of(state_dict[name])}
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]
