"""Small baselines on histories made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model
from tests.training.cycle import TINY, write_cycle

ITEMS, LONGEST = 40, 10
SMALL: dict[str, dict[str, Any]] = {
    "Popularity": {},
    "TransitionCounter": {},
    "SASRecCE": {"hidden_size": 16, "n_heads": 2, "n_layers": 2},
    "SASRecSS": {"hidden_size": 16, "negatives": 20},
    "HSTU": {"hidden_size": 16, "n_heads": 2, "negatives": 20},
    "TIGER": {
        "hidden_size": 16,
        "n_heads": 2,
        "head_size": 8,
        "inner_size": 32,
        "n_layers": 1,
        "semantic_codebook_size": 8,
        "user_tokens": 10,
    },
}
"""Settings of each baseline that suit a test."""


def build(name: str, place: Path, **options: Any) -> Any:
    """The untrained model on the cycle data, out of training mode."""
    path = write_cycle(place / "cycle", ITEMS)
    settings = TINY | SMALL[name] | options | {"data_path": str(path)}
    config = RunConfig(name, "cycle", settings=settings)
    torch.manual_seed(0)
    return get_model(name)(config, load_dataset(config).build()[0]).eval()


def interaction(
    histories: list[list[int]], targets: list[int] | None = None, users: list[int] | None = None
) -> Interaction:
    """Rows as RecBole's loaders give them, items at times that grow by more and more."""
    lengths = torch.tensor([len(items) for items in histories])
    items = torch.zeros(len(histories), LONGEST, dtype=torch.long)
    times = torch.zeros(len(histories), LONGEST)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
        times[row, : len(history)] = 1e6 + 4.0 ** torch.arange(len(history))
    return Interaction(
        {
            "item_id_list": items,
            "item_length": lengths,
            "timestamp_list": times,
            "item_id": torch.tensor(targets or [1] * len(histories)),
            "user_id": torch.tensor(users or [0] * len(histories)),
        }
    )
