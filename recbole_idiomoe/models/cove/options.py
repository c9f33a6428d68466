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
        "learning_rate": 0.0001,
        "epochs": 14,
        "train_batch_size": 32,
    }
    search_space = {
        "learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
        "item_compression": {"choices": [1, 2, 4, 8]},
        "item_scale": {"low": 1.0, "high": 32.0, "log": True},
        "epochs": {"low": 4, "high": 24},  # the learning rate falls to 0 by the last
    }
