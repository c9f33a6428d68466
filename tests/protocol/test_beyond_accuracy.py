"""Metrics beyond accuracy, for every model and as RecBole has them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.protocol.evaluation import Evaluation
from recbole_idiomoe.protocol.splits import split_dataset
from recbole_idiomoe.report.tables import table
from recbole_idiomoe.tuning import tune
from tests.protocol.loops import our_loop, recboles_loop
from tests.training.cycle import TINY, write_cycle

BEYOND = ["ItemCoverage", "AveragePopularity", "ShannonEntropy", "GiniIndex", "TailPercentage"]
SMALL: dict[str, Any] = TINY | {
    "metrics": ["Hit", *BEYOND],
    "topk": [2, 5],
    "valid_metric": "Hit@5",
    "epochs": 2,
    "metric_decimal_place": 12,
}
SASREC = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 2}
MODELS = ("SASRec", "SASRecCE", "Popularity", "IDIOMoE")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_cycle(tmp_path / "cycle", length=13))


class NumberOnTheCpu(int):
    """RecBole asks every count for itself on the CPU, which numbers do not know."""

    def cpu(self) -> int:
        return self


class CountsOnTheCpu(Counter[int]):
    def cpu(self) -> Counter[int]:
        return self


def test_values_are_those_of_recboles_own_trainer(data: str) -> None:
    settings = SMALL | SASREC | {"data_path": data, "mask_seen": False}
    trainer, test = recboles_loop("SASRec", "cycle", settings)
    struct = trainer.eval_collector.data_struct
    struct.set("data.num_items", NumberOnTheCpu(struct.get("data.num_items")))
    struct.set("data.count_items", CountsOnTheCpu(struct.get("data.count_items")))
    wanted = dict(trainer.evaluate(test, load_best_model=False))
    evaluation = our_loop("SASRec", "cycle", settings)
    assert evaluation.run() == evaluation.run()  # what was counted stays
    assert evaluation.run() == wanted and len(wanted) == 12


@pytest.mark.parametrize("model", MODELS)
def test_values_follow_from_the_lists_and_the_training_targets(model: str, data: str) -> None:
    config = RunConfig(model, "cycle", settings=SMALL | {"data_path": data})
    splits = split_dataset(config, load_dataset(config))
    lists: list[np.ndarray] = []

    class Fixed(torch.nn.Module):
        """Every model recommends by the same scores, so that only the counts can differ."""

        def full_sort_predict(self, interaction: Any) -> torch.Tensor:
            scores = torch.arange(splits.dataset.item_num).repeat(len(interaction), 1) % 7
            return scores + torch.linspace(0, 0.5, splits.dataset.item_num)

    evaluation = Evaluation(Fixed(), splits.test, config)
    evaluation.collector.data_collect(splits.train)
    collect = evaluation.collector.eval_batch_collect

    def noted(scores: torch.Tensor, *rest: Any) -> None:
        lists.append(scores.topk(5).indices.numpy())
        collect(scores, *rest)

    evaluation.collector.eval_batch_collect = noted  # type: ignore[method-assign]
    found = evaluation.run()
    listed = np.concatenate(lists)
    # The 13 items of a user: the first is no target, the last two are held out.
    rows = Path(data, "cycle", "cycle.inter").read_text().splitlines()[1:]
    seen: Counter[str] = Counter()
    for user in range(60):
        seen.update(row.split("\t")[1] for row in rows[user * 13 : user * 13 + 13][1:-2])
    names = splits.dataset.field2id_token["item_id"]
    popularity = np.array([seen[name] for name in names])
    num = len(names)
    counts = np.sort(np.bincount(listed.ravel(), minlength=num))
    gini = np.sum((2 * np.arange(1, num + 1) - num - 1) * counts) / (num * counts.sum())
    shares = counts[counts > 0] / counts.sum()
    assert found["averagepopularity@5"] == pytest.approx(popularity[listed].mean())
    assert found["itemcoverage@5"] == pytest.approx(len(np.unique(listed)) / num)
    assert found["giniindex@5"] == pytest.approx(gini)
    assert found["shannonentropy@5"] == pytest.approx(-(shares * np.log(shares)).mean())
    assert 0 <= found["tailpercentage@5"] <= 1


def test_they_stand_in_one_table_for_all_models(data: str) -> None:
    settings = SMALL | SASREC | {"data_path": data, "metric_decimal_place": 4}
    results = api.run(["SASRec", "Popularity", "IDIOMoE"], "cycle", settings=settings)
    for result in results:
        assert {f"{name.lower()}@5" for name in BEYOND} <= result["test_result"].keys()
    settings = SMALL | {"data_path": data, "topk": [5], "valid_metric": "giniindex@5"}
    settings |= {"metrics": ["AveragePopularity", "GiniIndex"]}
    shown = table(api.run("Popularity", "cycle", settings=settings))
    assert "AveragePopularity@5" in shown and "GiniIndex@5" in shown


@pytest.mark.parametrize(
    ("metric", "better"),
    [("AveragePopularity@5", min), ("GiniIndex@5", min), ("ItemCoverage@5", max)],
)
@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
def test_the_epoch_that_is_kept_is_the_best_by_them(
    model: str, metric: str, better: Any, data: str
) -> None:
    settings = SMALL | {"data_path": data, "valid_metric": metric, "epochs": 4}
    settings |= SASREC if model == "SASRec" else {}
    [result] = api.run(model, "cycle", settings=settings)
    curve = [point["valid"] for point in result["learning_curve"]]
    assert result["best_valid_result"][metric.lower()] == better(curve)


def test_a_search_keeps_the_best_trial_by_them(data: str, tmp_path: Path) -> None:
    settings = SMALL | {"data_path": data, "valid_metric": "GiniIndex@5", "epochs": 1}
    settings |= {"tuned": str(tmp_path / "tuned")}
    [search] = tune("SASRec", "cycle", settings=settings, trials=2)
    values = [trial["valid"]["giniindex@5"] for trial in search["trials"]]
    assert search["best"]["valid"]["giniindex@5"] == min(values)


def test_a_board_cannot_be_ordered_by_them(data: str, tmp_path: Path) -> None:
    settings = SMALL | {"data_path": data, "valid_metric": "GiniIndex@5"}
    with pytest.raises(SettingError, match="does not follow from a target's rank"):
        api.run("Popularity", "cycle", settings=settings, leaderboard=tmp_path / "board")


def test_a_board_marks_the_smallest_where_smaller_is_better(data: str, tmp_path: Path) -> None:
    models = ["Popularity", "TransitionCounter"]
    settings = SMALL | {"data_path": data, "metric_decimal_place": 4, "topk": [5]}
    api.run(models, "cycle", settings=settings, leaderboard=tmp_path / "board")
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "board" / "README.md").read_text().splitlines()
        if line.startswith("|")
    ][:4]
    for name, better in (("AveragePopularity@5", min), ("ItemCoverage@5", max)):
        cells = [row[header.index(name)] for row in rows]
        bold = [float(cell.strip("*")) for cell in cells if cell.startswith("**")]
        assert bold == [better(float(cell.strip("*<u>/").split("<")[0]) for cell in cells)]
