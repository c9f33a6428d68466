"""Mixes with the counter: what their scores are, and what chooses their weight."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.protocol import mixing
from recbole_idiomoe.protocol.evaluation import RankedBatch
from recbole_idiomoe.protocol.mixing import WEIGHTS, Mixture
from recbole_idiomoe.protocol.ranks import NamedRanks
from recbole_idiomoe.report.tables import table
from tests.helpers import DATASET_SETTINGS, write_dataset
from tests.training.cycle import TINY, write_cycle

inf = float("inf")
SMALL = TINY | {"metric_decimal_place": 12, "epochs": 1, "eval_batch_size": 17}
OWN: dict[str, dict[str, Any]] = {
    "SASRec": {"n_layers": 1, "hidden_size": 16, "n_heads": 2},
    "SASRecCE": {"n_layers": 1, "hidden_size": 16, "n_heads": 2},
    "GRU4Rec": {"num_layers": 1, "hidden_size": 16, "embedding_size": 16},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle", both_ways=True)


def run(model: str, data: Path, **given: Any) -> dict[str, Any]:
    settings = SMALL | OWN.get(model, {}) | {"data_path": str(data)} | given
    (result,) = api.run(model, "cycle", settings=settings)
    return result


def test_scores_are_expectations_over_candidates_alone() -> None:
    scores = torch.tensor([[-inf, 0.0, np.log(3.0), -inf, 0.0]])
    counts = torch.tensor([[9.0, 1.0, 0.0, 5.0, 3.0]])
    mixed = Mixture(scores, counts, are_counts=False).at(0.25)
    # The softmax is .2, .6, .2, the shares are .25, 0, .75.
    wanted = [-inf, 0.75 * 0.2 + 0.25 * 0.25, 0.75 * 0.6, -inf, 0.75 * 0.2 + 0.25 * 0.75]
    assert mixed[0].tolist() == pytest.approx(wanted)
    counted = Mixture(torch.tensor([[-inf, 1.0, 3.0, -inf, 0.0]]), counts, are_counts=True).at(0.5)
    assert counted[0].tolist() == pytest.approx([-inf, 0.25, 0.375, -inf, 0.375])


def test_the_ends_are_what_is_mixed_to_the_last_digit() -> None:
    scores = torch.tensor([[-inf, 1e-30, 0.0, -200.0]])
    mixture = Mixture(scores, torch.tensor([[7.0, 2.0, 0.0, 1.0]]), are_counts=False)
    assert mixture.at(0.0)[0].tolist() == scores[0].tolist()
    assert mixture.at(1.0)[0].tolist() == [-inf, 2.0, 0.0, 1.0]


def test_a_history_that_nothing_followed_leaves_the_model_its_order() -> None:
    scores = torch.tensor([[-inf, 1.0, 3.0, 2.0]])
    mixed = Mixture(scores, torch.zeros(1, 4), are_counts=False).at(0.95)
    assert mixed.argsort(descending=True).tolist() == [[2, 3, 1, 0]]
    assert mixed[0, 1:].isfinite().all() and mixed[0, 0] == -inf


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "SASRecCE", "Popularity", "IDIOMoE"])
def test_any_model_is_mixed_and_its_own_result_stays(model: str, data: Path) -> None:
    alone, beside = run(model, data), run(model, data, mix="TransitionCounter")
    for same in ("test_result", "best_valid_result", "learning_curve", "parameters"):
        assert beside[same] == alone[same]
    assert "mix" not in alone and not (Path(alone["folder"]) / "mix-ranks.npz").exists()
    mix = beside["mix"]
    assert mix["with"] == "TransitionCounter" and mix["weight"] in WEIGHTS
    # Of all weights the best, the model's own among them.
    assert mix["best_valid_result"]["ndcg@10"] >= alone["best_valid_result"]["ndcg@10"]
    folder = Path(beside["folder"])
    ranks, own = NamedRanks.load(folder / "mix-ranks.npz"), NamedRanks.load(folder / "ranks.npz")
    for name, value in mix["test_result"].items():
        assert round(float(ranks.metric(name).mean()), 12) == value
    assert np.array_equal(ranks.user, own.user) and np.array_equal(ranks.item, own.item)


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
def test_at_its_ends_a_mix_is_the_model_or_the_counters_own_run(
    model: str, mask_seen: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = run("TransitionCounter", data, mask_seen=mask_seen)
    for weight in (0.0, 1.0):
        monkeypatch.setattr(mixing, "WEIGHTS", (weight,))
        result = run(model, data, mix="TransitionCounter", mask_seen=mask_seen)
        same = counter if weight else result
        for part in ("best_valid_result", "test_result"):
            assert result["mix"][part] == same[part]
        ranks = NamedRanks.load(Path(result["folder"]) / "mix-ranks.npz")
        wanted = NamedRanks.load(Path(same["folder"]) / "ranks.npz")
        assert np.array_equal(ranks.rank, wanted.rank) and np.array_equal(ranks.user, wanted.user)


def test_the_weight_is_the_best_of_all_on_validation(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = run("SASRecCE", data, mix="TransitionCounter")["mix"]
    by_weight = {}
    for weight in WEIGHTS:
        monkeypatch.setattr(mixing, "WEIGHTS", (weight,))
        by_weight[weight] = run("SASRecCE", data, mix="TransitionCounter")["mix"]
    value = {w: mix["best_valid_result"]["ndcg@10"] for w, mix in by_weight.items()}
    assert len(set(value.values())) > 5
    assert chosen["weight"] == max(value, key=lambda weight: value[weight])
    alike = by_weight[chosen["weight"]]
    assert {k: v for k, v in chosen.items() if k != "eval_seconds"} == {
        k: v for k, v in alike.items() if k != "eval_seconds"
    }


def test_other_test_items_choose_the_same_weight(tmp_path: Path) -> None:
    """Nothing of the test reaches the choice: with other last items it is the same."""
    items, rng = list(range(12)), np.random.default_rng(5)
    before = [[*items, 3, 4]] + [rng.integers(12, size=3 + n % 6).tolist() for n in range(40)]
    results = []
    for name, last in (("a", 0), ("b", 5)):
        taken = [[*history, int((history[-1] * 7 + last) % 12)] for history in before]
        rows = [
            (f"u{user}", f"i{item}", float(step))
            for user, history in enumerate(taken)
            for step, item in enumerate(history)
        ]
        titles = [(f"i{n}", f"title {n}", "a") for n in items]
        path = write_dataset(tmp_path / name / "shop", rows, titles)
        settings = DATASET_SETTINGS | {"data_path": str(path), "mix": "TransitionCounter"}
        given = {"topk": [5, 10], "mask_seen": False, "valid_metric": "NDCG@5"}
        (result,) = api.run("Popularity", "shop", settings=settings | given)
        results.append(result["mix"])
    one, other = results
    assert one["test_result"] != other["test_result"]
    assert 0 < one["weight"] == other["weight"]
    assert one["best_valid_result"] == other["best_valid_result"]


def test_a_metric_where_less_is_better_chooses_the_least() -> None:
    class Trainer:
        """Stands in for RecBole's, with a metric of which a weight of .35 has the least."""

        model, valid_metric, valid_metric_bigger = torch.nn.Linear(1, 1), "averagepopularity@5", 0

    class Collector:
        data_struct = None
        seen = 0.0

        def eval_batch_collect(self, scores: torch.Tensor, *_: Any) -> None:
            self.seen = float(scores[0, 1])

        def model_collect(self, _: Any) -> None: ...

        def get_data_struct(self) -> float:
            return self.seen

    class Evaluator:
        def evaluate(self, seen: float) -> dict[str, float]:
            return {"averagepopularity@5": abs(seen - 0.35)}

    class Counter:
        def full_sort_predict(self, _: Any) -> torch.Tensor:
            return torch.tensor([[0.0, 4.0, 0.0]])

    trainer: Any = Trainer()
    trainer.eval_collector, trainer.evaluator = Collector(), Evaluator()
    scores = torch.tensor([[-inf, -60.0, 0.0]])  # expects nothing of what the counter does
    counter: Any = Counter()
    search = mixing.WeightSearch(trainer, counter)
    search.started(None)
    batch: Any = RankedBatch({}, scores, torch.tensor([0]), torch.tensor([1]))
    search.ranked(batch)
    weight, found = search.best()
    assert weight == 0.35 and found["averagepopularity@5"] == pytest.approx(0, abs=1e-6)


def test_the_counter_is_not_mixed_with_itself(data: Path) -> None:
    assert "mix" not in run("TransitionCounter", data, mix="TransitionCounter")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mix": "SASRec"}, "mix='SASRec' is not one of 'TransitionCounter'"),
        ({"cold_start": 0.2}, "nobody had the unseen items of a cold start"),
        ({"eval_args": {"mode": "uni20"}, "mask_seen": False}, "needs the full ranking"),
        ({"benchmark_filename": ["a", "b", "c"]}, "needs one .inter file"),
    ],
    ids=str,
)
def test_what_cannot_be_mixed_is_one_line_before_training(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said) as error:
        RunConfig("SASRec", "ml-100k", settings={"mix": "TransitionCounter"} | given)
    assert "\n" not in str(error.value)


def test_both_are_rows_of_the_table(data: Path) -> None:
    settings = SMALL | OWN["SASRecCE"] | {"data_path": str(data), "mix": "TransitionCounter"}
    results = api.run("SASRecCE,TransitionCounter", "cycle", settings=settings)
    text = table(results)
    assert max(map(len, text.splitlines())) <= 80
    (header, _, *rest) = text.splitlines()
    assert header.startswith("cycle")
    assert " ".join(" ".join(rest).split()).count("TransitionCounter") >= 3
    assert f"on validation: SASRecCE {results[0]['mix']['weight']:g}." in " ".join(text.split())
    assert f"{results[0]['mix']['test_result']['ndcg@10']:.4f}" in text
