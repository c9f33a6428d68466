"""Exact ranking by a T5: the log-probability of every item's whole code after a history.

:func:`~recbole_idiomoe.lm.prefix_tree.rank_leaves` does the same for decoders: shared beginnings of
codes are computed once, piece by piece of their prefix tree. The decoder's start token is the root
of the tree, so that a piece holds everything that its nodes attend to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, T5ForConditionalGeneration

from recbole_idiomoe.lm.prefix_tree import Piece, PrefixTree, edge_log_probs
from recbole_idiomoe.models.tiger.t5_packing import additive, row_lengths

# Elements of the widest states in memory at once: 1 GiB in float32. Few large kernels suit a GPU.
STATES = 2**28


def code_tree(codes: Sequence[np.ndarray], start: int, device: torch.device) -> PrefixTree:
    """The prefix tree of item codes with the decoder's token ``start`` as its root.

    Raises:
        ValueError: a code begins another one.
    """
    return PrefixTree([np.concatenate(([start], code)) for code in codes], device)


def rows_at_once(t5: T5ForConditionalGeneration, tree: PrefixTree, length: int) -> int:
    """The largest number of histories of ``length`` tokens that are ranked together."""
    config = t5.config
    nodes = max(len(piece.nodes) for piece in tree.pieces)
    widest = max(config.d_ff, config.num_heads * max(config.d_kv, nodes, length))
    return max(1, STATES // (max(nodes, length) * widest))


@torch.no_grad()
def rank_leaves(
    t5: T5ForConditionalGeneration, tree: PrefixTree, input_ids: Tensor, mask: Tensor
) -> Tensor:
    """Log-probability of every item of ``tree`` as the next one, (B, items), float32.

    Args:
        t5: in evaluation mode.
        tree: from :func:`code_tree`.
        input_ids: (B, T), tokens of the encoder.
        mask: (B, T), bool, false at padding.
    """
    parts = -(-len(mask) // rows_at_once(t5, tree, mask.shape[1]))
    lengths = row_lengths(mask)
    # Another thread that loads a model may have changed torch's default dtype.
    scores = torch.empty(len(mask), len(tree.leaves), dtype=torch.float32, device=mask.device)
    # Longest first: each part is padded to its own longest.
    for rows in lengths.argsort(descending=True).tensor_split(parts):
        longest = int(lengths[rows[0]])
        scores[rows] = _rank(t5, tree, input_ids[rows, :longest], mask[rows, :longest])
    return scores


def _rank(
    t5: T5ForConditionalGeneration, tree: PrefixTree, input_ids: Tensor, mask: Tensor
) -> Tensor:
    encoded = t5.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
    history_mask = additive(mask[:, None, None], t5.dtype)
    # Computed for the first piece, and read by all others.
    history_keys = DynamicCache()
    edges = history_mask.new_zeros(len(input_ids), len(tree), dtype=torch.float32)
    for piece in tree.pieces:
        states = _states(t5, tree, piece, encoded, history_mask, history_keys)
        edges[:, piece.children] = edge_log_probs(
            states, piece.parents, tree.tokens[piece.children], t5.lm_head
        )
    return tree.scores(edges)


def _states(
    t5: T5ForConditionalGeneration,
    tree: PrefixTree,
    piece: Piece,
    encoded: Tensor,
    history_mask: Tensor,
    history_keys: DynamicCache,
) -> Tensor:
    """The decoder's states of each node of a piece, ready for its head: (B, P, d).

    Computed as in the decoder's own forward pass, except that a node attends only to its path.
    """
    decoder: Any = t5.decoder
    hidden = decoder.embed_tokens(tree.tokens[piece.nodes]).expand(len(encoded), -1, -1)
    depths = tree.depths[piece.nodes]
    # The depth of inner nodes is below the height of the tree.
    distance_bias = decoder.block[0].layer[0].SelfAttention.compute_bias(tree.height, tree.height)
    path_bias = distance_bias[:, :, depths][:, :, :, depths]
    path_mask = additive(tree.sees(piece.nodes)[None, None], t5.dtype)
    keys = EncoderDecoderCache(_NoCache(), history_keys)
    # The same for all heads and nodes, so that the mask of attention stays one row per history.
    history_bias = history_mask.new_zeros(1)
    for block in decoder.block:
        masks = (path_mask, path_bias, encoded, history_mask, history_bias)
        hidden, _, _ = block(hidden, *masks, past_key_values=keys)
    hidden = decoder.final_layer_norm(hidden)
    return hidden * t5.model_dim**-0.5 if t5.config.scale_decoder_outputs else hidden


class _NoCache(DynamicCache):
    """Keeps no keys and values of a piece: no other piece reads them, and keeping copies them."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states
