"""Options of E4SRec: its authors' ranks and rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recbole_idiomoe.models.language.options import AdapterOptions


@dataclass(frozen=True)
class E4SRecOptions(AdapterOptions):
    """Options of E4SRec."""

    id_vectors: str | None = None
    """A .npz file of item_ids and vectors to read items by; null: the vectors of a SASRecCE that is
    trained first."""
    id_encoder: dict[str, Any] | None = None
    """Settings in which that SASRecCE differs from its own, as {hidden_size: 128}."""

    recipe = {
        "learning_rate": 0.0003,
        "dropout": 0.05,
        "epochs": 20,  # of windows; as many steps as its authors' 3 of prefixes on Amazon
        "train_batch_size": 16,
    }
    search_space = {
        "learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
        "weight_decay": {"choices": [0.0, 0.01, 0.1]},
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "item_scale": {"low": 1.0, "high": 32.0, "log": True},
        "epochs": {"low": 3, "high": 24},  # the learning rate falls to 0 by the last
    }
