"""An item table cut over processes: vocabulary-parallel embedding, cross entropy and scores.

Each rank has as many rows as any other, its gradient and its optimizer's state of them, and a share
of the users. What is asked of the table is asked by all ranks together: states and item ids go to
all, each answers with its own rows, and the answers are put together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_idiomoe.base.distributed import OwnRows
from recbole_idiomoe.lm.embedding import ItemTable, weighted_sums
from recbole_idiomoe.lm.item_loss import in_chunks
from recbole_idiomoe.lm.row_exchange import RowExchange


class ItemTableShard(ItemTable):
    """One rank's rows of an :class:`ItemTable`, which all ranks use together.

    It is for training and ranking, which read items and score them; it does not grow, and its
    vectors are not analysed. A state that it loads is that of the whole table.

    Args:
        table: the same on every rank, a single matrix.
        exchange: of the ranks.
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
        # Every rank's loss reaches these rows, and is multiplied for DDP, which takes a mean.
        self.rows.register_hook(lambda gradient: gradient / exchange.ranks)

    def forward(self, items: Tensor) -> Tensor:
        asked = items.flatten().unsqueeze(1)
        sizes = self.exchange.sizes(len(asked))
        every = self.exchange.gather(asked, sizes)
        found = self._sums_of_own(every, torch.ones_like(every, dtype=torch.float32))
        vectors = self.exchange.summed(found, sizes)
        return vectors.to(self.rows.dtype).view(*items.shape, self.hidden_size)

    def cross_entropy(self, hidden_states: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """Cross entropy over the catalogue with targets of several items each, nats.

        Memory grows with the positions of all ranks times one rank's rows, up to ``SCORE_BYTES``
        as in :func:`~recbole_idiomoe.lm.item_loss.summed_cross_entropy`.

        Args:
            hidden_states: (N, d), of this rank's positions.
            items: (N, k), what is to be predicted.
            weights: (N, k), float32, their probabilities.

        Returns:
            (N,).
        """
        sizes = self.exchange.sizes(len(items))
        first = sum(sizes[: self.exchange.rank])
        with torch.autocast(hidden_states.device.type, enabled=False):
            states = self.exchange.gathered(hidden_states.float(), sizes)
            own_sums = torch.cat(in_chunks(self._logsumexp, self.own.size, states))
            every = self.exchange.gathered(own_sums.unsqueeze(0), [1] * self.exchange.ranks)
            normalisers = every[:, first : first + len(items)].logsumexp(dim=0)
            asked = (self.exchange.gather(asked, sizes) for asked in (items, weights))
            scores = (states * self._sums_of_own(*asked)).sum(dim=1)
            return normalisers - self.exchange.summed(scores, sizes)

    @torch.no_grad()
    def logits(self, hidden_states: Tensor) -> Tensor:
        """As :meth:`ItemTable.logits`, of this rank's states (n, d), without a gradient."""
        sizes = self.exchange.sizes(len(hidden_states))
        with torch.autocast(hidden_states.device.type, enabled=False):
            states = self.exchange.gather(hidden_states.float(), sizes)
            blocks = states.new_zeros(len(sizes), max(sizes), self.own.size)
            # Each rank's states by themselves, as in one process: a larger product may round
            # otherwise.
            for block, asked in zip(blocks, states.split(sizes), strict=True):
                block[: len(asked)] = F.linear(asked, self.rows.float())
        by_user = self.exchange.swapped(blocks).transpose(0, 1)
        scores = by_user[: len(hidden_states)].flatten(1)[:, : self.item_num]
        scores[..., 0] = -torch.inf
        return scores

    def _logsumexp(self, states: Tensor) -> Tensor:
        """Of the scores of this rank's items: (n, d) -> (n,)."""
        scores = F.linear(states, self.rows.float())
        # Not infinite: a rank may have none but such.
        nothing = torch.finfo(scores.dtype).min
        if self.own.rank == 0:
            scores[:, 0] = nothing
        scores[:, max(0, self.item_num - self.own.start) :] = nothing
        return scores.logsumexp(dim=1)

    def _sums_of_own(self, items: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of vectors, others' rows left out: (n, k) and (n, k) -> (n, d)."""
        is_own = (items // self.own.size == self.own.rank) & (items > 0)
        return weighted_sums(self.rows, items % self.own.size, weights * is_own)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        name = f"{prefix}rows"
        if name in state_dict:
            state_dict = {**state_dict, name: self.own.of(state_dict[name])}
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]
