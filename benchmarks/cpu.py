"""Time to learn on a CPU: the README's default command, and RecBole's SASRec as the yardstick.

    python benchmarks/cpu.py

Both train on RecBole's ml-100k one after the other on the same threads. What counts is the time,
validation included, until validation NDCG@10 is as good as SASRec ever gets. IDIOMoE's run is
whole. SASRec needs dozens of epochs, all alike: a few are timed, and multiplied by how many its
whole runs took to their best (results/backbone-ml-100k-SASRec.json, three seeds on a GPU).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measuring import markdown, where

from recbole_idiomoe import api

WHOLE_RUNS = Path(__file__).parents[1] / "results" / "backbone-ml-100k-SASRec.json"
# RecBole's default stops a run when this many evaluations in a row were no better.
WITHOUT_BETTER = 11


def train(model: str, **settings: Any) -> dict[str, Any]:
    """The result of one run, whose files are not kept."""
    with tempfile.TemporaryDirectory() as folder:
        settings |= {"checkpoint_dir": folder, "gpu_id": "", "show_progress": False}
        (result,) = api.run(model, "ml-100k", settings=settings)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="of SASRec, to time (default: 3)")
    given = parser.parse_args()
    whole = json.loads(WHOLE_RUNS.read_text())["runs"]
    best = statistics.mean(run["valid"]["ndcg@10"] for run in whole)
    needed = statistics.mean(run["epochs"] - WITHOUT_BETTER for run in whole)

    sasrec = train("SASRec", epochs=given.epochs)
    # One of the evaluations is the test.
    share = given.epochs / (given.epochs + 1)
    epoch = (sasrec["train_seconds"] + share * sasrec["eval_seconds"]) / given.epochs
    ours = train("IDIOMoE")
    seconds = ours["train_seconds"] + ours["eval_seconds"]
    reached = ours["best_valid_result"]["ndcg@10"]

    print(f"\n{where('cpu')}\n")
    rows = [
        ["SASRec", f"{needed:.0f}", f"{best:.4f}", "1.00"],
        ["IDIOMoE", ours["epochs"], f"{reached:.4f}", f"{seconds / (needed * epoch):.3f}"],
    ]
    print(markdown(["ml-100k", "epochs", "best validation NDCG@10", "time, SASRec = 1"], rows))
    verdict = "as good as" if reached >= best else "not as good as"
    print(f"\nIDIOMoE is {verdict} SASRec's best at the end of its run.")


if __name__ == "__main__":
    main()
