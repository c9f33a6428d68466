"""Exact ranking of items with codes of several tokens, over all leaves of their prefix tree.

An item's score is the log-probability of its whole code after the history. The history is computed
once for all items, and a common beginning of codes once for the items that share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from recbole_idiomoe.lm.modeling import IdiomoeForCausalLM

# A node attends to its whole piece although it sees its own path alone: larger pieces take longer.
PIECE_SIZE = 128
# Most token scores at a time, in elements.
LOGITS = 2**26


class Piece(NamedTuple):
    """Some nodes of the tree as one sequence, in which each node follows its ancestors."""

    nodes: Tensor
    """Nodes of the tree, shape ``(P,)``, ascending."""
    parents: Tensor
    """Where in ``nodes`` each edge from this piece's nodes starts, shape ``(E,)``, ascending."""
    children: Tensor
    """The nodes of the tree at which these edges end, shape ``(E,)``."""


class PrefixTree:
    """The prefix tree of the items' codes: a node is a beginning of codes, a leaf a whole code.

    Nodes are numbered depth first, so that a subtree is an interval.

    Args:
        codes: token ids of each item, at least one; items with equal codes share a leaf.
        device: device of all tensors.
        piece_size: most nodes of a :class:`Piece`, without the ancestors that it repeats.

    Attributes:
        tokens, parents, depths, ends: ``(nodes,)``: the last token of each node, its parent (-1
            for none), its number of ancestors, and the number after the last node of its subtree.
        height: the largest depth.
        leaves: the leaf of each item, shape ``(items,)``.
        pieces: pieces of all inner nodes; leaves are not computed, only predicted.

    Raises:
        ValueError: one code is the beginning of another one.
    """

    def __init__(
        self,
        codes: Sequence[np.ndarray],
        device: torch.device | str = "cpu",
        piece_size: int = PIECE_SIZE,
    ) -> None:
        self.tokens, self.parents, self.depths, self.ends, self.leaves = (
            torch.from_numpy(numbers).to(device) for numbers in _number_nodes(codes)
        )
        self.height = int(self.depths.max())
        is_inner = self.ends > torch.arange(len(self), device=device) + 1
        if is_inner[self.leaves].any():
            raise ValueError("the code of one item begins another item's code.")
        self.pieces = list(self._pieces(is_inner.nonzero().squeeze(1), piece_size))

    def __len__(self) -> int:
        return len(self.tokens)

    def sees(self, nodes: Tensor) -> Tensor:
        """A mask (P, P), True where the column's node is the row's node or its ancestor."""
        below = nodes.unsqueeze(1)
        return (nodes <= below) & (below < self.ends[nodes])

    def scores(self, edges: Tensor) -> Tensor:
        """Sum the log-probabilities of nodes, given their parents: (B, nodes) -> (B, items)."""
        totals = edges.clone()
        for depth in range(1, self.height + 1):
            nodes = (self.depths == depth).nonzero().squeeze(1)
            totals[:, nodes] += totals[:, self.parents[nodes]]
        return totals[:, self.leaves]

    def _pieces(self, inner: Tensor, piece_size: int) -> Iterator[Piece]:
        edges = (self.parents >= 0).nonzero().squeeze(1)
        edges = edges[torch.argsort(self.parents[edges], stable=True)]
        starts = self.parents[edges].contiguous()
        for nodes in inner.split(piece_size) if len(inner) else ():
            # Nodes are numbered depth first, so that an ancestor of any of them is in this range
            # or is an ancestor of the first one.
            above = []
            parent = int(self.parents[nodes[0]])
            while parent >= 0:
                above.append(parent)
                parent = int(self.parents[parent])
            begin, end = torch.searchsorted(starts, torch.stack((nodes[0], nodes[-1] + 1)))
            children = edges[begin:end]
            nodes = torch.cat((nodes.new_tensor(above[::-1]), nodes))
            yield Piece(nodes, torch.searchsorted(nodes, self.parents[children]), children)


@torch.no_grad()
def rank_leaves(
    lm: IdiomoeForCausalLM,
    tree: PrefixTree,
    input_ids: Tensor,
    token_types: Tensor,
    lengths: Tensor,
    logits: Callable[[Tensor], Tensor],
    first_token: int = 0,
) -> Tensor:
    """Compute the log-probability of every item of ``tree`` after each history.

    Args:
        input_ids, token_types: (B, T), histories padded on the right.
        lengths: (B,), number of tokens of each history.
        logits: maps states (n, d) to the scores (n, V) of the tokens that codes consist of.
        first_token: the token that belongs to column 0 of these scores.

    Returns:
        (B, items), float32.
    """
    batch, device = len(input_ids), input_ids.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else lm.dtype
    prefix = _Prefix()
    states = lm.hidden_states(
        input_ids, token_types, past_key_values=prefix, use_cache=True
    ).last_hidden_state
    assert states is not None
    prefix.complete = True
    last = states[torch.arange(batch, device=device), lengths - 1].unsqueeze(1)
    # Another thread that loads a model may have changed torch's default dtype.
    edges = torch.empty(batch, len(tree), dtype=torch.float32, device=device)
    roots = (tree.parents < 0).nonzero().squeeze(1)
    columns = tree.tokens - first_token
    edges[:, roots] = edge_log_probs(last, torch.zeros_like(roots), columns[roots], logits)
    in_history = torch.arange(input_ids.shape[1], device=device) < lengths.unsqueeze(1)
    for piece in tree.pieces:
        size = len(piece.nodes)
        on_path = tree.sees(piece.nodes).expand(batch, -1, -1)
        seen = torch.cat((in_history.unsqueeze(1).expand(-1, size, -1), on_path), dim=-1)
        # An additive mask, because eager attention takes no boolean one.
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        states = lm.hidden_states(
            tree.tokens[piece.nodes].expand(batch, -1),
            attention_mask=mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1),
            position_ids=lengths.unsqueeze(1) + tree.depths[piece.nodes],
            past_key_values=prefix,
        ).last_hidden_state
        assert states is not None
        edges[:, piece.children] = edge_log_probs(
            states, piece.parents, columns[piece.children], logits
        )
    return tree.scores(edges)


def _number_nodes(codes: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return tokens, parents, depths and subtree ends of all nodes, and the leaf of each code."""
    lengths = np.array([len(code) for code in codes])
    padded = np.full((len(codes), lengths.max()), -1)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(codes)
    rows, row_of_code = np.unique(padded, axis=0, return_inverse=True)
    # In sorted codes, a token starts a new node if the code differs from the previous one up to it.
    is_node = np.ones(rows.shape, dtype=bool)
    is_node[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    is_node &= rows >= 0
    numbers = np.full(rows.shape, -1)
    numbers[is_node] = np.arange(is_node.sum())
    numbers = np.maximum.accumulate(numbers, axis=0)
    parents = np.pad(numbers[:, :-1], ((0, 0), (1, 0)), constant_values=-1)[is_node]
    depths = is_node.nonzero()[1]
    ends = np.arange(1, len(parents) + 1)
    for depth in range(rows.shape[1] - 1, 0, -1):
        nodes = np.flatnonzero(depths == depth)
        np.maximum.at(ends, parents[nodes], ends[nodes])
    leaves = numbers[row_of_code.ravel(), lengths - 1]
    return rows[is_node], parents, depths, ends, leaves


class _Prefix(DynamicCache):
    """A cache of the histories' keys and values that stays fixed once ``complete`` is set."""

    complete = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.complete:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer: Any = self.layers[layer_idx]
        longer = (layer.keys, key_states), (layer.values, value_states)
        return torch.cat(longer[0], dim=-2), torch.cat(longer[1], dim=-2)


def edge_log_probs(
    states: Tensor, parents: Tensor, columns: Tensor, logits: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute the log-probability of one token for each of E edges: (B, E), float32.

    Args:
        states: (B, P, d), final states of a piece's nodes.
        parents: (E,), ascending, the positions in ``states`` that predict the tokens.
        columns: (E,), the tokens' columns in the scores.
        logits: maps states (n, d) to scores (n, V).
    """
    width = logits(states[0, :1]).shape[-1]
    step = max(1, LOGITS // (width * len(states)))
    found = []
    for start in range(0, states.shape[1], step):
        ends = parents.new_tensor([start, start + step])
        begin, end = torch.searchsorted(parents, ends).tolist()
        if begin < end:
            scores = logits(states[:, start : start + step].flatten(0, 1))
            # With dtype, one kernel converts and normalises.
            scores = scores.log_softmax(-1, dtype=torch.float32).unflatten(0, (len(states), -1))
            found.append(scores[:, parents[begin:end] - start, columns[begin:end]])
    return torch.cat(found, dim=1)
