"""Options of SASRec with a softmax.

The recipe is that of github.com/blondered/transformer_benchmark, with early stopping.
"""

from __future__ import annotations

from dataclasses import dataclass

from recbole_idiomoe.base.options import Options, PositiveInt, Share


@dataclass(frozen=True)
class SASRecCEOptions(Options):
    """Options of SASRecCE; the section is that of SASRec's paper."""

    hidden_size: PositiveInt = 64
    """Width of item vectors, states and feed-forward networks [section III.B]."""
    n_layers: PositiveInt = 1
    """Layers."""
    n_heads: PositiveInt = 1
    """Attention heads; hidden_size is a multiple of them."""
    dropout_prob: Share = 0.2
    """Dropout of inputs, attention and layers."""

    recipe = {
        "learning_rate": 0.001,
        "train_batch_size": 128,  # training windows
        "epochs": 200,
        "stopping_step": 10,
    }
    search_space = {
        "learning_rate": {"low": 0.0001, "high": 0.005, "log": True},
        "hidden_size": {"choices": [64, 128, 256]},
        "n_layers": {"low": 1, "high": 3},
        "n_heads": {"choices": [1, 2, 4]},
        "dropout_prob": {"low": 0.1, "high": 0.5, "step": 0.1},
    }


@dataclass(frozen=True)
class SASRecSSOptions(SASRecCEOptions):
    """Options of SASRecSS: SASRecCE's, and what differs."""

    negatives: PositiveInt = 256
    """Uniform draws that each position's target is compared with."""

    recipe = {
        "dropout_prob": 0.4  # validation of amazon-toys: NDCG@10 .0704, with .2 .0692
    }
