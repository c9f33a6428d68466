"""Leaderboards whose runs are made by hand: in milliseconds, with ranks that are known."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.models.registry import LANGUAGE_MODELS
from recbole_idiomoe.protocol.description import protocol
from recbole_idiomoe.protocol.ranks import NamedRanks
from recbole_idiomoe.runs.plan import RunPlan
from recbole_idiomoe.runs.result import RunResult

USERS = 60
METRICS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
SHIFT = {"SASRec": 12, "GRU4Rec": 16, "IDIOMoE": 6, "IDTransformer": 9, "TransitionCounter": 20}
"""How far down a model's targets are ranked at most."""


class Runner:
    """Stands in for ``execute``: a result at once, from the model's name and seed.

    Attributes:
        ran: model, data set and seed of every run.
        failing: models that fail.
        interrupted: the run before which somebody presses Ctrl-C, counted from 0.
    """

    def __init__(self) -> None:
        self.ran: list[tuple[str, str, int]] = []
        self.failing: set[str] = set()
        self.interrupted: int | None = None
        self.candidates = "all 40 items"

    def __call__(self, plan: RunPlan) -> RunResult:
        config = plan.config
        model, seed = config["model"], config["seed"]
        if len(self.ran) == self.interrupted:
            raise KeyboardInterrupt
        if model in self.failing:
            raise IdiomoeError(f"{model} has no luck.")
        self.ran.append((model, config["dataset"], seed))
        folder = Path(config["checkpoint_dir"]) / "run"
        counted = model == "TransitionCounter"
        name = model if counted else f"{model} {seed} {config['learning_rate']}"
        ranks = ranks_by_chance(name, SHIFT[model])
        ranks.save(folder / "ranks.npz")
        test = {name: round(float(ranks.metric(name).mean()), 6) for name in METRICS}
        besides: dict[str, Any] = {}
        if config["mix"] and config["mix"] != model:
            mixed = ranks_by_chance(f"{model} {seed} mixed", SHIFT[model] - 3)
            mixed.save(folder / "mix-ranks.npz")
            found = {name: round(float(mixed.metric(name).mean()), 6) for name in METRICS}
            besides["mix"] = {
                "with": config["mix"],
                "weight": (seed - 2017) / 20,
                "best_valid_result": found,
                "test_result": found,
                "eval_seconds": 0.7,
            }
        if config["language_file"] and model in LANGUAGE_MODELS:
            change = 0.0 if config["freeze"] == "backbone" else 0.25 * (seed - 2019)
            besides["language"] = {
                "file": Path(config["language_file"]).name,
                "tokenizer": "bundled",
                "tokens": 12_345,
                "context": 512,
                "nll": 4.0 + change,
                "untouched_nll": 4.0,
                "nll_change": change,
            }
        content = besides | {
            "model": model,
            "dataset": config["dataset"],
            "seed": seed,
            "protocol": protocol(config, 40) | {"candidates": self.candidates},
            "test_result": test,
            "best_valid_result": {name: value + 0.01 for name, value in test.items()},
            "learning_curve": [{"epoch": n, "train_loss": 1 / n, "valid": n / 99} for n in (1, 2)],
            "epochs": 2,
            "train_seconds": 2.5,
            "eval_seconds": 0.5,
            "parameters": {
                "total": 0 if counted else 1_234_567,
                "trainable": 0 if counted else 1_000_000,
            },
            "peak_memory_mib": 321.0,
            "device": "CPU, 1 threads",
            "versions": {"recbole": "1.2.1"},
            "folder": str(folder),
            "settings": config.complete_settings(),
        }
        return RunResult(**content)


def ranks_by_chance(name: str, most: int) -> NamedRanks:
    """The ranks of ``USERS`` targets, from 1 to ``most``, drawn by ``name``."""
    digest = hashlib.sha256(name.encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    users = np.arange(USERS)
    return NamedRanks(
        user=np.char.add("u", users.astype(str)),
        item=np.char.add("i", (users % 7).astype(str)),
        rank=random.integers(1, most + 1, USERS),
        history=users % 9 + 1,
        popularity=users % 7 * 3,
    )
