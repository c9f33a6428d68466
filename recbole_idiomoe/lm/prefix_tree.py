"""Exact ranking of items that are spelt in several tokens: all leaves of their prefix tree.

An item's score is the log-probability of its whole code after the history. Items whose codes
begin alike share the computation of what they share, and all of them that of the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from recbole_idiomoe.lm.modeling import IdiomoeForCausalLM

# Every node attends to its whole piece, although it sees its own path alone.
PIECE_SIZE = 128
# Scores of tokens held at once, in elements.
LOGITS = 2**26


class Piece(NamedTuple):
    """Some nodes of the tree as one sequence, each behind its ancestors."""

    nodes: Tensor
    """``(P,)``, ascending."""
    parents: Tensor
    """``(E,)``, positions in ``nodes``, one for each edge that starts in this piece."""
    children: Tensor
    """``(E,)``, nodes of the tree at which those edges end."""


class PrefixTree:
    """Codes of items as a tree whose nodes are the codes' beginnings; leaves are items.

    Nodes are numbered depth first, so that a subtree is an interval.

    Args:
        codes: token ids of each item, at least one each; equal codes share a leaf.
        device: where its tensors are.
        piece_size: most nodes in a :class:`Piece`, ancestors that it repeats not counted.

    Attributes:
        tokens, parents, depths: ``(nodes,)``: the token that a node ends with, the node above
            (-1: none), and how many are above.
        height: the largest of ``depths``.
        leaves: ``(items,)``, the node that is an item's whole code.
        pieces: all inner nodes; leaves need no computation of their own.

    Raises:
        ValueError: a code begins another, which then could not be told from it.
    """

    def __init__(
        self,
        codes: Sequence[np.ndarray],
        device: torch.device | str = "cpu",
        piece_size: int = PIECE_SIZE,
    ) -> None:
        tokens, parents, depths, leaves = _number_nodes([tuple(code.tolist()) for code in codes])
        self.tokens = torch.tensor(tokens, device=device)
        self.parents = torch.tensor(parents, device=device)
        self.depths = torch.tensor(depths, device=device)
        self.height = max(depths)
        self.leaves = torch.tensor(leaves, device=device)
        self.ends = torch.tensor(_subtree_ends(parents), device=device)
        is_inner = self.ends > torch.arange(len(tokens), device=device) + 1
        if is_inner[self.leaves].any():
            raise ValueError("a code begins another.")
        self.pieces = list(self._pieces(is_inner.nonzero().squeeze(1), piece_size))

    def __len__(self) -> int:
        return len(self.tokens)

    def sees(self, nodes: Tensor) -> Tensor:
        """Which of ``nodes`` (P,) stand on whose path: (P, P), rows see columns and themselves."""
        below = nodes.unsqueeze(1)
        return (nodes <= below) & (below < self.ends[nodes])

    def scores(self, edges: Tensor) -> Tensor:
        """Log-probabilities of the items, (B, items), from those of every node given its parent.

        Args:
            edges: (B, nodes).
        """
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
            # Nodes are in depth-first order: what is above any of them is among them, or above
            # the first.
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
@torch.compiler.set_stance("force_eager")  # its cache would compile every layer by itself
def rank_leaves(
    lm: IdiomoeForCausalLM,
    tree: PrefixTree,
    input_ids: Tensor,
    token_types: Tensor,
    lengths: Tensor,
    logits: Callable[[Tensor], Tensor],
    first_token: int = 0,
) -> Tensor:
    """Log-probability of every item of ``tree`` as what follows each history.

    Args:
        input_ids, token_types: (B, T), histories padded on the right.
        lengths: (B,), tokens of each.
        logits: scores of the tokens that codes are made of, (n, d) -> (n, V); column ``j`` is
            that of token ``first_token + j``.

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
    edges = torch.empty(batch, len(tree), device=device)
    roots = (tree.parents < 0).nonzero().squeeze(1)
    columns = tree.tokens - first_token
    edges[:, roots] = edge_log_probs(last, torch.zeros_like(roots), columns[roots], logits)
    in_history = torch.arange(input_ids.shape[1], device=device) < lengths.unsqueeze(1)
    for piece in tree.pieces:
        size = len(piece.nodes)
        on_path = tree.sees(piece.nodes).expand(batch, -1, -1)
        seen = torch.cat((in_history.unsqueeze(1).expand(-1, size, -1), on_path), dim=-1)
        # Added to the scores: eager attention knows no other kind, and SDPA takes it too.
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


def _number_nodes(
    codes: Sequence[tuple[int, ...]],
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Tokens, parents and depths of the tree's nodes, depth first, and each code's last node."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    leaves = [0] * len(codes)
    path: list[int] = []
    for item in sorted(range(len(codes)), key=codes.__getitem__):
        code = codes[item]
        while [tokens[node] for node in path] != list(code[: len(path)]):
            path.pop()
        for depth in range(len(path), len(code)):
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(code[depth])
            depths.append(depth)
        leaves[item] = path[-1]
    return tokens, parents, depths, leaves


def _subtree_ends(parents: Sequence[int]) -> list[int]:
    """The number behind the last node below each, of nodes that are numbered depth first."""
    ends = list(range(1, len(parents) + 1))
    for node in reversed(range(len(parents))):
        if parents[node] >= 0:
            ends[parents[node]] = max(ends[parents[node]], ends[node])
    return ends


class _Prefix(DynamicCache):
    """A history's keys and values: once complete, attended to but not added to."""

    complete = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.complete:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer: Any = self.layers[layer_idx]
        return (
            torch.cat((layer.keys, key_states), dim=-2),
            torch.cat((layer.values, value_states), dim=-2),
        )


def edge_log_probs(
    states: Tensor, parents: Tensor, columns: Tensor, logits: Callable[[Tensor], Tensor]
) -> Tensor:
    """Log-probability of ``columns`` (E,) at the positions ``parents`` (E,) of (B, P, d) states.

    Args:
        parents: ascending.

    Returns:
        (B, E), float32.
    """
    width = logits(states[0, :1]).shape[-1]
    step = max(1, LOGITS // (width * len(states)))
    found = []
    for start in range(0, states.shape[1], step):
        ends = parents.new_tensor([start, start + step])
        begin, end = torch.searchsorted(parents, ends).tolist()
        if begin < end:
            scores = logits(states[:, start : start + step].flatten(0, 1))
            # One kernel, whatever type the scores have.
            scores = scores.log_softmax(-1, dtype=torch.float32).unflatten(0, (len(states), -1))
            found.append(scores[:, parents[begin:end] - start, columns[begin:end]])
    return torch.cat(found, dim=1)
