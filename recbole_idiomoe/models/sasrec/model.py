"""SASRec as published, but with a softmax over the catalogue or over sampled items.

"Self-Attentive Sequential Recommendation" (Kang and McAuley, ICDM 2018) trains with one negative
and binary cross entropy, which is why many tables show low figures. "Turning Dross Into Gold Loss"
(Klenitskiy and Vasilev, RecSys 2023) and "gSASRec" (Petrov and Macdonald, RecSys 2023) show what it
reaches with a softmax.

With a sampled softmax and the protocol of this package, github.com/blondered/transformer_benchmark
has HR@10/NDCG@10 Toys .0970/.0580, Beauty .0921/.0531, Sports .0569/.0314. RecBole's own ``SASRec``
learns only the last position of a row, with a row for every prefix, and has post-norm layers as
BERT has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from recbole_idiomoe.models.next_item import NextItemRecommender, sampled_softmax
from recbole_idiomoe.models.sasrec.options import SASRecCEOptions, SASRecSSOptions


class SASRecCE(NextItemRecommender):
    """SASRec with cross entropy over the whole catalogue at every position.

    As in the paper: learned positions, counted back from the last item; layers of causal attention
    whose queries alone are normalised, and a feed-forward network of the model's width with ReLU,
    each added to its normalised input (section III.B and the authors' code); a last norm; one item
    table for input and output.
    """

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        options = SASRecCEOptions.from_mapping(config)
        width, dropout = options.hidden_size, options.dropout_prob
        self.items = nn.Embedding(self.n_items, width, padding_idx=0)
        self.positions = nn.Embedding(self.max_seq_length, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(width, options.n_heads, dropout) for _ in range(options.n_layers)
        )
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)
        nn.init.zeros_(self.items.weight[0])

    def item_vectors(self) -> torch.Tensor:
        return self.items.weight

    def states(self, interaction: Interaction) -> torch.Tensor:
        items, lengths = self.histories(interaction), interaction[self.ITEM_SEQ_LEN]
        length = items.shape[1]
        from_start = torch.arange(length, device=items.device)
        # Negative past a history's end, where states are never read.
        from_end = (lengths.unsqueeze(1) - 1 - from_start).clamp(min=0)
        # Item vectors start smaller than position vectors; this factor of the authors corrects it.
        scaled = self.items(items) * math.sqrt(self.items.embedding_dim)
        hidden = self.dropout(scaled + self.positions(from_end))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)

    def item_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = states @ self.item_vectors().T
        return functional.cross_entropy(logits[:, 1:], targets - 1)


class SASRecSS(SASRecCE):
    """SASRec with a softmax over each position's target and uniformly drawn negatives."""

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.negatives = SASRecSSOptions.from_mapping(config).negatives

    def item_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return sampled_softmax(states, targets, self.item_vectors(), self.negatives)


class _Layer(nn.Module):
    """Causal attention, which needs no padding mask, and a feed-forward network."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"hidden_size={width} is no multiple of n_heads={heads}.")
        self.heads, self.attention_dropout = heads, dropout
        self.query_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.inner_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.query_norm(hidden)
        hidden = normed + self._attention(normed, hidden)
        normed = self.inner_norm(hidden)
        inner = self.dropout(functional.relu(self.inner(normed)))
        return normed + self.dropout(self.outer(inner))

    def _attention(self, queries: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        rows, length, width = hidden.shape
        query, key, value = (
            part.view(rows, length, self.heads, -1).transpose(1, 2)
            for part in (self.query(queries), *self.key_value(hidden).chunk(2, dim=-1))
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True
        )
        return self.attention_out(mixed.transpose(1, 2).reshape(rows, length, width))
