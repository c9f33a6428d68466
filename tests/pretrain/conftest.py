from __future__ import annotations

import random
from pathlib import Path

import pytest


def sentences(seed: int, count: int) -> str:
    """Lines of a toy language: regular enough to be learnt in seconds."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        a, b = rng.choice(["cat", "dog"]), rng.choice(["house", "tree"])
        lines.append(f"The {rng.choice(['big', 'small'])} {a} sits under the {b} and sees 3 {a}s.")
    return "\n".join(lines) + "\n"


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A file of ten texts."""
    file = tmp_path / "books.txt"
    file.write_text("\x1e\n".join(sentences(seed, 60) for seed in range(10)), encoding="utf-8")
    return file
