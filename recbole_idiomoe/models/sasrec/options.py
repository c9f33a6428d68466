"""Options of SASRec with a softmax.

The recipe is that of github.com/blondered/transformer_benchmark, with early stopping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole_idiomoe.base.options import Options, option


@dataclass(frozen=True)
class SASRecCEOptions(Options):
    """Options of SASRecCE; the section is that of SASRec's paper."""

    hidden_size: int = option(
        64,
        "width of item vectors, states and feed-forward networks",
        low=1,
        section="section III.B",
    )
    n_layers: int = option(1, "layers", low=1)
    n_heads: int = option(1, "attention heads; hidden_size is a multiple of them", low=1)
    dropout_prob: float = option(0.2, "dropout of inputs, attention and layers", low=0.0, high=1.0)

    recipe: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.001,
        "train_batch_size": 128,  # training windows
        "epochs": 200,
        "stopping_step": 10,
    }
    search_space: ClassVar[Mapping[str, Any] | None] = {
        "learning_rate": {"low": 0.0001, "high": 0.005, "log": True},
        "hidden_size": {"choices": [64, 128, 256]},
        "n_layers": {"low": 1, "high": 3},
        "n_heads": {"choices": [1, 2, 4]},
        "dropout_prob": {"low": 0.1, "high": 0.5, "step": 0.1},
    }


@dataclass(frozen=True)
class SASRecSSOptions(SASRecCEOptions):
    """Options of SASRecSS: SASRecCE's, and what differs."""

    negatives: int = option(
        256, "uniform draws that each position's target is compared with", low=1
    )

    recipe: ClassVar[Mapping[str, Any]] = {
        "dropout_prob": 0.4  # validation of amazon-toys: NDCG@10 .0704, with .2 .0692
    }
