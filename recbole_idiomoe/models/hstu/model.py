"""HSTU: the sequential transduction unit of generative recommenders.

"Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations" (Zhai et al., ICML 2024), sections 3 and 4.1. Sizes and starting weights are from
the authors' code, github.com/meta-recsys/generative-recommenders.

The authors publish figures for MovieLens and Books, on other splits of other data. With the
protocol of this package, github.com/blondered/transformer_benchmark has HR@10/NDCG@10 Toys
.0778/.0450, Beauty .0788/.0439, Sports .0437/.0243.

Difference from the authors' code: their time bias measures how long before the *target* an item
was, which tells the model when the user will come back. Here it depends on the history alone, as in
the other models of a table. RecBole keeps times as float32, precise to about two minutes.
"""

from __future__ import annotations

import logging
import math
import warnings
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from recbole_idiomoe.models.hstu.options import HSTUOptions
from recbole_idiomoe.models.next_item import NextItemRecommender, sampled_softmax

logger = logging.getLogger(__name__)

FIRST_TIME = 10_000
"""Lower timestamps are positions in histories: as seconds, they are the first hours of 1970."""
_BUCKETS = 128
_BUCKET_WIDTH = 0.301  # of the natural logarithm: 35% more time is the next bucket
_START = 0.02  # standard deviation of most starting weights


class HSTU(NextItemRecommender):
    """Layers of pointwise gated attention, trained with a sampled softmax of cosines.

    Each position's target is compared with ``negatives`` uniform draws. Cosines are divided by
    ``temperature``.

    With ``use_time``, attention has a bias by time in addition to its bias by position. Histories
    without times, as in ``recommend``, are scored without it, with a warning. Timestamps that are
    positions have no time to read, so without a setting the bias is then left out.
    """

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        options = HSTUOptions.from_mapping(config)
        width = options.hidden_size
        self.negatives, self.temperature = options.negatives, options.temperature
        self.times_field = config["TIME_FIELD"] + config["LIST_SUFFIX"]
        self.use_time = _uses_time(options, config, dataset)
        self.items = nn.Embedding(self.n_items, width, padding_idx=0)
        self.positions = nn.Embedding(self.max_seq_length, width)
        self.dropout = nn.Dropout(options.dropout_prob)
        self.layers = nn.ModuleList(
            Unit(options, self.max_seq_length, self.use_time) for _ in range(options.n_layers)
        )
        nn.init.trunc_normal_(self.items.weight, std=_START)
        nn.init.zeros_(self.items.weight[0])
        nn.init.trunc_normal_(self.positions.weight, std=width**-0.5)

    def item_vectors(self) -> torch.Tensor:
        return functional.normalize(self.items.weight, dim=-1)

    def states(self, interaction: Interaction) -> torch.Tensor:
        items = self.histories(interaction)
        length = items.shape[1]
        buckets = self._buckets(interaction, length) if self.use_time else None
        # Item vectors start smaller than position vectors; this factor of the authors corrects it.
        scaled = self.items(items) * math.sqrt(self.items.embedding_dim)
        hidden = self.dropout(scaled + self.positions.weight[:length])
        for layer in self.layers:
            hidden = layer(hidden, buckets)
        # Divided here, not in the loss, so that the scores of items are logits too.
        return functional.normalize(hidden, dim=-1) / self.temperature

    def item_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return sampled_softmax(states, targets, self.item_vectors(), self.negatives)

    def _buckets(self, interaction: Interaction, length: int) -> torch.Tensor | None:
        if self.times_field in interaction:
            return time_buckets(interaction[self.times_field][:, :length])
        warnings.warn("HSTU: the history has no times; only its order is used.", stacklevel=2)
        return None


class Unit(nn.Module):
    """One layer (equations 1 to 3): projection, attention without softmax, gated output.

    Args:
        longest: largest number of items in a history, which attention is divided by.
        use_time: whether attention has a bias by time.
    """

    def __init__(self, options: HSTUOptions, longest: int, use_time: bool) -> None:
        super().__init__()
        width, self.heads, self.longest = options.hidden_size, options.n_heads, longest
        if width % self.heads:
            raise ValueError(f"hidden_size={width} is no multiple of n_heads={self.heads}.")
        self.uvqk = nn.Linear(width, 4 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(options.dropout_prob)
        self.position_bias = nn.Parameter(torch.empty(longest).normal_(std=_START))
        if use_time:
            self.time_bias = nn.Parameter(torch.empty(_BUCKETS + 1).normal_(std=_START))
        nn.init.normal_(self.uvqk.weight, std=_START)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, hidden: torch.Tensor, buckets: torch.Tensor | None) -> torch.Tensor:
        """New states; hidden ``(rows, length, width)``, buckets ``(rows, length, length)``."""
        rows, length, width = hidden.shape
        gate, *parts = functional.silu(self.uvqk(_normed(hidden))).chunk(4, dim=-1)
        value, query, key = (
            part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts
        )
        scores = query @ key.transpose(2, 3) + self._bias(length, buckets)
        weights = (functional.silu(scores) / self.longest).tril()
        mixed = (weights @ value).transpose(1, 2).reshape(rows, length, width)
        return hidden + self.output(self.dropout(gate * _normed(mixed)))

    def _bias(self, length: int, buckets: torch.Tensor | None) -> torch.Tensor:
        """The bias of all heads before the activation, ``(rows or 1, 1, length, length)``."""
        position = torch.arange(length, device=self.position_bias.device)
        distance = (position.unsqueeze(1) - position).clamp(min=0)  # later items are masked
        bias = self.position_bias[distance].unsqueeze(0)
        if buckets is not None:
            # Most pairs share a few buckets. A GPU sums the gradient of an embedding in parallel,
            # but the gradient of indexing one by one.
            bias = bias + functional.embedding(buckets, self.time_bias.unsqueeze(1)).squeeze(-1)
        return bias.unsqueeze(1)


def _uses_time(options: HSTUOptions, config: Config, dataset: Any) -> bool:
    """Whether to read timestamps; says so in the log where they are positions."""
    are_positions = len(dataset.history_times) and dataset.history_times.max() < FIRST_TIME
    if not are_positions:
        return options.use_time is not False
    said = f"HSTU: the timestamps of {config['dataset_label']} are all below {FIRST_TIME:,}, thus"
    if options.use_time:
        logger.warning("%s positions; use_time=True reads them as seconds", said)
    elif options.use_time is None:
        logger.info("%s positions and not seconds; use_time is off", said)
    return bool(options.use_time)


def time_buckets(times: torch.Tensor) -> torch.Tensor:
    """The bucket of the time between two items, by its logarithm.

    Args:
        times: of each item in seconds, ``(rows, length)``.

    Returns:
        ``(rows, length, length)``: at ``[:, i, j]`` for the time from item j to item i, 0 for less
        than 1.35 seconds.
    """
    elapsed = (times.unsqueeze(2) - times.unsqueeze(1)).clamp(min=1)
    return (elapsed.log() / _BUCKET_WIDTH).long().clamp(max=_BUCKETS)


def _normed(hidden: torch.Tensor) -> torch.Tensor:
    """Layer norm without weights."""
    return functional.layer_norm(hidden, hidden.shape[-1:], eps=1e-6)
