"""Options of CoVE: its authors' ranks, hashes and rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recbole_idiomoe.base.options import PositiveInt, Range
from recbole_idiomoe.models.language.options import AdapterOptions


@dataclass(frozen=True)
class CoVEOptions(AdapterOptions):
    """Options of CoVE."""

    item_hashes: Annotated[int, Range(1, 16)] = 4
    """Rows whose mean is an item's vector."""
    item_compression: PositiveInt = 2
    """Items for each row of the item table (1: a row for each)."""

    recipe = {
        "lora_rank": 8,
        "item_template": ': "{title}",',
        "learner": "adamw",
        "learning_rate": 0.0001,
        "weight_decay": 0.0,
        "clip_grad_norm": {"max_norm": 1.0},
        "item_warmup": 0.0,  # text from the first epoch on
        "text_ramp": 0.0,
        "epochs": 14,
        "train_batch_size": 32,
        "eval_batch_size": 1024,
        "stopping_step": 5,
    }
    search_space = {
        "learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
        "item_compression": {"choices": [1, 2, 4, 8]},
        "item_scale": {"low": 1.0, "high": 32.0, "log": True},
        "epochs": {"low": 4, "high": 24},  # the learning rate falls to 0 by the last
    }
