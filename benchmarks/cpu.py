"""Training time on a CPU: the README's default command compared with RecBole's SASRec.

    python benchmarks/cpu.py

Both train on ml-100k, one after the other on the same threads. The measure is the time, including
validation, until validation NDCG@10 reaches SASRec's best. IDIOMoE runs to its end. SASRec needs
dozens of equal epochs: a few are timed and multiplied by the number that whole runs took to their
best epoch (results/backbone-ml-100k-SASRec.json, three seeds on a GPU).
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
# By default, RecBole stops a run after this many evaluations in a row without an improvement.
WITHOUT_BETTER = 11


def train(model: str, **settings: Any) -> dict[str, Any]:
    """The result of one run in a temporary folder."""
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
