"""Options of HSTU: the sizes of its authors' runs on public data (2 layers, 1 head), 64 wide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole_idiomoe.base.options import Options, option


@dataclass(frozen=True)
class HSTUOptions(Options):
    """Options of HSTU; the sections are those of its own paper."""

    hidden_size: int = option(64, "width of item vectors and states", low=1)
    n_layers: int = option(2, "layers", low=1)
    n_heads: int = option(1, "attention heads; hidden_size is a multiple of them", low=1)
    dropout_prob: float = option(0.2, "dropout of inputs and layers", low=0.0, high=1.0)
    use_time: bool = option(
        True,
        "bias attention by the time between items, beside their positions",
        section="section 3",
    )
    negatives: int = option(
        128, "uniform draws that each position's target is compared with", low=1
    )
    temperature: float = option(0.05, "what cosines are divided by, above 0", low=0.0)

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
