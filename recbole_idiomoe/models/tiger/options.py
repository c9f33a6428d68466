"""Options of TIGER: its authors' sizes; MAX_ITEM_LIST_LENGTH stays that of the protocol."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_idiomoe.base.options import NonNegativeInt, PositiveInt, Share
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models.language.options import BackboneOptions


@dataclass(frozen=True)
class TIGEROptions(BackboneOptions, TextOptions):
    """Options of TIGER; semantic IDs and text are chosen as for the language models."""

    hidden_size: PositiveInt = 128
    """Width of embeddings and states."""
    n_layers: PositiveInt = 4
    """Layers of the encoder, and as many of the decoder."""
    n_heads: PositiveInt = 6
    """Attention heads."""
    head_size: PositiveInt = 64
    """Width of a head; together they are wider than the states."""
    inner_size: PositiveInt = 1024
    """Width of the feed-forward networks."""
    dropout_prob: Share = 0.1
    """Dropout of all layers."""
    history_items: PositiveInt = 20
    """Most recent items that are read."""
    user_tokens: NonNegativeInt = 2000
    """Tokens that users share, in front of the history; 0: none."""

    recipe = {
        "learning_rate": 0.001,
        "train_batch_size": 256,  # targets, each with its history
        "epochs": 200,
        "stopping_step": 10,
    }
    search_space = {
        "learning_rate": {"low": 0.0001, "high": 0.005, "log": True},
        "hidden_size": {"choices": [64, 128, 256]},
        "n_layers": {"low": 1, "high": 4},
        "dropout_prob": {"low": 0.1, "high": 0.5, "step": 0.1},
        "user_tokens": {"choices": [0, 2000]},
    }
