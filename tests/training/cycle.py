"""A dataset whose next item follows a rule: item i + 1 comes after item i, in a circle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import DATASET_SETTINGS, TINY_BACKBONE, write_dataset

TINY: dict[str, Any] = DATASET_SETTINGS | {
    "backbone": "untrained",
    "backbone_args": TINY_BACKBONE,
    "MAX_ITEM_LIST_LENGTH": 10,
    "max_item_text_tokens": 8,
    "topk": [1, 5, 10],
    "train_batch_size": 32,
    "learning_rate": 0.01,
    "warmup_steps": 5,
    "item_warmup": 0.0,
    "text_ramp": 0.0,
}
COLOURS = ("red", "green", "blue", "black", "white")


def titles_of(items: int) -> list[str]:
    """A title an item, no two the same."""
    return [f"{COLOURS[n % len(COLOURS)]} thing {n}" for n in range(items)]


def write_cycle(
    folder: Path,
    items: int = 40,
    users: int = 60,
    length: int = 8,
    titles: list[str] | None = None,
    both_ways: bool = False,
) -> Path:
    """Users who start anywhere and take ``length`` steps; returns the folder's parent.

    With ``both_ways`` every other user walks backwards, so that the last item alone does not
    tell the next.
    """
    starts = np.random.default_rng(0).integers(items, size=users)

    def ahead(user: int) -> bool:
        return not both_ways or user % 2 == 0

    rows = [
        (f"u{user}", f"i{(start + (step if ahead(user) else -step)) % items}", float(step))
        for user, start in enumerate(starts.tolist())
        for step in range(length)
    ]
    names = titles or titles_of(items)
    return write_dataset(
        folder, rows, [(f"i{n}", title, "toys|games") for n, title in enumerate(names)]
    )
