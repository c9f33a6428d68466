"""Every metric that is printed against an independent implementation.

ranx has those of ranked lists; GAUC and the Shannon entropy, which it lacks, are written out again
from their definitions.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranx import Qrels, Run, evaluate

from recbole_idiomoe import api
from recbole_idiomoe.base.run_folder import RANKS_FILE
from recbole_idiomoe.config.evaluation import _METRICS
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol.ranks import METRICS, NamedRanks
from tests.training.cycle import TINY, write_cycle

RANX = {"Hit": "hit_rate", "NDCG": "ndcg", "MRR": "mrr", "Recall": "recall"}
RANX |= {"Precision": "precision", "MAP": "map"}
OTHERS = ("GAUC", "ShannonEntropy")
# These have a test beside them, test_beyond_accuracy.
BEYOND = {"AveragePopularity", "GiniIndex", "ItemCoverage", "TailPercentage"}
POINTWISE = {"AUC", "MAE", "RMSE", "LogLoss"}  # of labels, which no ranking here has
TOPK = [1, 3, 10, 36]
ITEMS = 40


def scores_of(seed: int, users: int) -> torch.Tensor:
    """Scores that no two items of a user share: how ties are broken is nobody's definition."""
    rng = np.random.default_rng(seed)
    ranks = np.stack([rng.permutation(ITEMS + 1) for _ in range(users)])
    return torch.from_numpy(ranks / ITEMS - 0.5).float()


class Followed:
    """A run of ``model`` with known scores, and all that its test ranked."""

    def __init__(
        self, model: str, seed: int, place: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
    ) -> None:
        cls = get_model(model)
        known = scores_of(seed, 61)
        monkeypatch.setattr(
            cls, "full_sort_predict", lambda _, batch: known[batch["user_id"]].clone()
        )
        path = write_cycle(place / "cycle", ITEMS)
        options = {"metrics": [*RANX, *OTHERS], "topk": TOPK, "metric_decimal_place": 10}
        options |= {"epochs": 1, "eval_batch_size": 17, "data_path": str(path)}
        (self.result,) = api.run(model, "cycle", settings=TINY | options | settings)
        self.known = known.numpy()
        self.ranks = NamedRanks.load(Path(self.result["folder"]) / RANKS_FILE)

    def candidates(self) -> list[tuple[int, dict[int, float]]]:
        """Of each user of the test: the target, and all candidates' scores, by item row."""
        rows = [line.split("\t") for line in self._lines("inter")]
        items = list(dict.fromkeys(row[1] for row in rows))
        items += [i for i in (x.split("\t")[0] for x in self._lines("item")) if i not in items]
        row_of = {item: row for row, item in enumerate(items, start=1)}
        found = []
        for number, user in enumerate(dict.fromkeys(row[0] for row in rows), start=1):
            *seen, target = (row_of[row[1]] for row in rows if row[0] == user)
            left = set(row_of.values()) - (set(seen) - {target})
            found.append((target, {row: float(self.known[number, row]) for row in left}))
        return found

    def _lines(self, suffix: str) -> list[str]:
        path = Path(self.result["settings"]["data_path"]) / f"cycle/cycle.{suffix}"
        return path.read_text().splitlines()[1:]


@pytest.mark.parametrize("model", ["IDIOMoE", "SASRec"])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_ranked_lists_are_ranxs(
    model: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Followed(model, seed, tmp_path, monkeypatch)
    users = run.candidates()
    qrels = Qrels({str(n): {str(target): 1} for n, (target, _) in enumerate(users)})
    ranked = Run({str(n): {str(i): s for i, s in c.items()} for n, (_, c) in enumerate(users)})
    names = {f"{ours.lower()}@{k}": f"{RANX[ours]}@{k}" for ours in RANX for k in TOPK}
    expected = evaluate(qrels, ranked, list(names.values()))
    for ours, theirs in names.items():
        assert run.result["test_result"][ours] == pytest.approx(expected[theirs], abs=1e-9), ours
        assert run.ranks.metric(ours).mean() == pytest.approx(expected[theirs], abs=1e-9), ours


@pytest.mark.parametrize("seed", range(3))
def test_the_others_are_as_defined(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Followed("SASRec", seed, tmp_path, monkeypatch)
    users = run.candidates()
    # Of all pairs of a user's target and another candidate: the share in the right order.
    shares = [
        np.mean([scores[target] > score for item, score in scores.items() if item != target])
        for target, scores in users
    ]
    gauc = run.result["test_result"]["gauc"]  # which RecBole computes in float32
    assert gauc == pytest.approx(np.mean(shares), abs=1e-6)
    for k in TOPK[:-1]:  # RecBole fills lists longer than there are candidates with seen items
        lists = [sorted(scores, key=scores.get, reverse=True)[:k] for _, scores in users]
        _, counts = np.unique(np.concatenate(lists), return_counts=True)
        share = counts / counts.sum()
        # RecBole's is the mean of -p log p over the items that were recommended, not their sum.
        expected = -(share * np.log(share)).sum() / len(counts)
        found = run.result["test_result"][f"shannonentropy@{k}"]
        assert found == pytest.approx(expected, abs=1e-9)


def test_no_metric_is_left_out() -> None:
    assert {*RANX, *OTHERS, *BEYOND, *POINTWISE} == set(_METRICS.values())
    assert set(METRICS) == {name.lower() for name in RANX}
