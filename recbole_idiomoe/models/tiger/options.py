"""Options of TIGER: its authors' sizes; MAX_ITEM_LIST_LENGTH stays that of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole_idiomoe.base.options import option
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models.language.options import BackboneOptions


@dataclass(frozen=True)
class TIGEROptions(BackboneOptions, TextOptions):
    """Options of TIGER; semantic IDs and text are chosen as for the language models."""

    hidden_size: int = option(128, "width of embeddings and states", low=1)
    n_layers: int = option(4, "layers of the encoder, and as many of the decoder", low=1)
    n_heads: int = option(6, "attention heads", low=1)
    head_size: int = option(64, "width of a head; together they are wider than the states", low=1)
    inner_size: int = option(1024, "width of the feed-forward networks", low=1)
    dropout_prob: float = option(0.1, "dropout of all layers", low=0.0, high=1.0)
    history_items: int = option(20, "most recent items that are read", low=1)
    user_tokens: int = option(
        2000, "tokens that users share, in front of the history; 0: none", low=0
    )

    recipe: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.001,
        "train_batch_size": 256,  # targets, each with its history
        "epochs": 200,
        "stopping_step": 10,
    }
    search_space: ClassVar[Mapping[str, Any] | None] = {
        "learning_rate": {"low": 0.0001, "high": 0.005, "log": True},
        "hidden_size": {"choices": [64, 128, 256]},
        "n_layers": {"low": 1, "high": 4},
        "dropout_prob": {"low": 0.1, "high": 0.5, "step": 0.1},
        "user_tokens": {"choices": [0, 2000]},
    }
