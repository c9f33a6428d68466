"""A tiny run of every model of ours, and of three of RecBole's, on a part of ml-100k.

The part is cut from RecBole's own copy when it is wanted: no data is kept here.

    python -m tests.golden.runs        # writes metrics.json anew, after a change that is meant
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import recbole
import torch

from recbole_idiomoe import api
from recbole_idiomoe.base.environment import versions
from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.models.registry import LANGUAGE_MODELS
from tests.helpers import DATASET_SETTINGS, NAMES, OTHER_NAMES, write_dataset
from tests.models.tiny_baselines import SMALL

FILE = Path(__file__).with_name("metrics.json")
USERS, ITEMS, NEWEST = 60, 80, 10
# No model has RecBole's names of columns in its code.
COMMON: dict[str, Any] = (
    DATASET_SETTINGS
    | OTHER_NAMES
    | {
        "MAX_ITEM_LIST_LENGTH": 8,
        "train_batch_size": 16,
        "learning_rate": 0.02,
        "epochs": 3,
        "eval_step": 3,
        # Of the whole ranking too: every target counts there, wherever it stands.
        "metrics": ["NDCG", "MRR"],
        "topk": [10, ITEMS],
        "metric_decimal_place": 8,
        "state": "error",
        "seed": 1,
    }
)
OURS: dict[str, Any] = {
    "backbone": "untrained",
    "backbone_args": {
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "precision": "fp32",
    "max_item_text_tokens": 4,
    "expert_width": 1.0,
    "item_warmup": 0.0,
    "text_ramp": 0.0,
    "warmup_steps": 2,
}
ENCODER = {"hidden_size": 16, "n_layers": 1, "epochs": 2, "train_batch_size": 16}
OWN: dict[str, dict[str, Any]] = {
    **{name: OURS for name in LANGUAGE_MODELS},
    **SMALL,
    "E4SRec": OURS | {"id_encoder": ENCODER},
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1},
    "GRU4Rec": {"embedding_size": 16, "hidden_size": 16, "num_layers": 1},
    "S3Rec": {  # whose first stage is computed by code of ours
        "hidden_size": 16,
        "inner_size": 16,
        "n_layers": 1,
        "pretrain_epochs": 3,
        "item_attribute": "categories",
    },
}
"""Models, and their own settings."""


def write_part_of_ml_100k(folder: Path) -> Path:
    """The most frequent items, and the newest interactions with them of the first users."""
    source = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k"
    inter, item = (
        [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        for path in (source.with_suffix(".inter"), source.with_suffix(".item"))
    )
    counts = Counter(item_id for _, item_id, *_ in inter)
    chosen = {item_id for item_id, _ in sorted(counts.items(), key=lambda x: (-x[1], x[0]))[:ITEMS]}
    rows = [
        (user, item_id, float(when))
        for user, item_id, _, when in inter
        if int(user) <= USERS and item_id in chosen
    ]
    newest = [
        row
        for user in range(1, USERS + 1)
        for row in sorted((r for r in rows if r[0] == str(user)), key=lambda r: r[2])[-NEWEST:]
    ]
    items = [
        (item_id, title, genres.replace(" ", "|"))
        for item_id, title, _, genres in item
        if item_id in chosen
    ]
    return write_dataset(folder, newest, items, NAMES)


def cpu() -> str:
    """The instructions that torch uses here, and the CPU's maker, where the system tells it."""
    lines = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    makers = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *makers[:1]])


def metrics_of(model: str, data_path: Path) -> dict[str, float]:
    """Test metrics of a run of ``model`` on the part, one thread at work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = COMMON | OWN[model] | {"data_path": str(data_path)}
        (result,) = api.run(model, "part", settings=settings)
    finally:
        torch.set_num_threads(threads)
    found: dict[str, float] = result["test_result"]
    return found


def main() -> None:
    """Run all models and write :data:`FILE`."""
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        path = write_part_of_ml_100k(Path(place) / "data" / "part")
        metrics = {model: metrics_of(model, path) for model in OWN}
    content = {
        "versions": versions(),
        "cpu": cpu(),
        "clustered": {},
        "metrics": metrics,
    }
    write_text(FILE, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
