"""What pretraining and item text bring: IDIOMoE in four variants and SASRec, over several seeds.

    python benchmarks/backbone.py --dataset=ml-100k --out=results/backbone-ml-100k.json
    python benchmarks/backbone.py --dataset=amazon-toys --data_path=DATA --jobs=4 --out=toys.json

Every run is one call of run_recbole_idiomoe.py with the data set's own settings; further
``--key=value`` settings go to all of them. ``--jobs`` runs share the machine, so that seconds
mean nothing and are not written. What has run is kept beside ``--out`` until all has, so that the
same command goes on after a failure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recbole_idiomoe.files import write_text

SCRIPT = Path(__file__).parent.parent / "run_recbole_idiomoe.py"
VARIANTS = {
    "IDIOMoE, pretrained, text": ["--model=IDIOMoE", "--backbone=bundled"],
    "IDIOMoE, pretrained, items alone": [
        "--model=IDIOMoE",
        "--backbone=bundled",
        "--use_text=False",
    ],
    "IDIOMoE, untrained, text": ["--model=IDIOMoE", "--backbone=untrained"],
    "IDIOMoE, untrained, items alone": [
        "--model=IDIOMoE",
        "--backbone=untrained",
        "--use_text=False",
    ],
    "SASRec": ["--model=SASRec"],
}
METRICS = ("hit@10", "ndcg@10")


def run(variant: str, seed: int, dataset: str, settings: list[str], folder: Path) -> dict[str, Any]:
    """One training run in a process of its own; the parts of its result that are compared.

    Raises:
        RuntimeError: the run failed; the message is the last line that it printed.
    """
    name = f"{list(VARIANTS).index(variant)}-{seed}"
    result_file = folder / f"{name}.json"
    if not result_file.exists():
        _train(variant, seed, dataset, settings, folder / name, result_file)
    result = json.loads(result_file.read_text(encoding="utf-8"))
    print(f"{variant}, seed {seed}: {result['test_result']}", file=sys.stderr, flush=True)
    return {
        "variant": variant,
        "seed": seed,
        "valid": {metric: result["best_valid_result"][metric] for metric in METRICS},
        "test": {metric: result["test_result"][metric] for metric in METRICS},
        "epochs": result["epochs"],
        "parameters": result["parameters"]["total"],
    } | {key: result[key] for key in ("protocol", "device", "versions")}


def _train(
    variant: str, seed: int, dataset: str, settings: list[str], checkpoints: Path, result_file: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPT.resolve()),
            f"--dataset={dataset}",
            f"--seed={seed}",
            f"--checkpoint_dir={checkpoints}",
            f"--result_file={result_file}",
            "--show_progress=False",
            *VARIANTS[variant],
            *settings,
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    if done.returncode:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise RuntimeError(f"{variant}, seed {seed}: {last}")
    shutil.rmtree(checkpoints)


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    lines = [
        "| model | seeds | HR@10 | NDCG@10 | validation NDCG@10 |",
        "|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(r["variant"] for r in runs):
        chosen = [r for r in runs if r["variant"] == variant]
        cells = [
            _mean([r[part][metric] for r in chosen])
            for part, metric in (("test", "hit@10"), ("test", "ndcg@10"), ("valid", "ndcg@10"))
        ]
        lines.append(" | ".join([f"| {variant}", str(len(chosen)), *cells]) + " |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--seeds", default="2020,2021,2022", help="comma separated")
    parser.add_argument("--only", default="", help="variants whose name begins so")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    given, settings = parser.parse_known_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    folder = given.out.with_suffix(".runs")
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = list(
            pool.map(
                lambda cell: run(*cell, given.dataset, settings, folder),
                itertools.product([v for v in VARIANTS if v.startswith(given.only)], seeds),
            )
        )
    shared = {key: runs[0][key] for key in ("protocol", "device", "versions")}
    for one in runs:
        if any(one.pop(key) != value for key, value in shared.items()):
            raise RuntimeError(f"{one['variant']}, seed {one['seed']} ran under another protocol.")
    settings = [one for one in settings if not one.startswith("--data_path=")]  # ours alone
    content = {"dataset": given.dataset, "settings": settings} | shared | {"runs": runs}
    write_text(given.out, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(folder)
    print(table(runs))


if __name__ == "__main__":
    main()
