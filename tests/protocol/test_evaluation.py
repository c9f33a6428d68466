"""Our evaluation loop gives RecBole's numbers, and tells its observers what it does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol.evaluation import Evaluation, Observer, RankedBatch
from recbole_idiomoe.protocol.splits import split_dataset
from tests.protocol.loops import our_loop, recboles_loop
from tests.training.cycle import TINY, write_cycle

PLAIN = TINY | {"metric_decimal_place": 12, "mask_seen": False}
SMALL = PLAIN | {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 2}
OWN: dict[str, dict[str, Any]] = {
    "SASRec": SMALL,
    "GRU4Rec": PLAIN | {"hidden_size": 16, "embedding_size": 16, "num_layers": 1},
    "DIN": PLAIN | {"embedding_size": 8, "mlp_hidden_size": [8]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_cycle(tmp_path_factory.mktemp("data") / "cycle"))


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("SASRec", {"eval_batch_size": 17}),
        ("SASRec", {"metrics": ["Hit", "NDCG", "GAUC", "ShannonEntropy"], "eval_batch_size": 64}),
        ("DIN", {"eval_batch_size": 100}),  # it scores pairs alone, in several parts
        ("DIN", {"eval_batch_size": 4096}),
        ("SASRec", {"eval_args": {"mode": "uni20"}, "eval_batch_size": 50}),
        ("GRU4Rec", {"eval_args": {"mode": "pop5"}, "eval_batch_size": 4096}),
    ],
    ids=str,
)
def test_metrics_are_those_of_recboles_loop(
    model: str, given: dict[str, Any], data: str, tmp_path: Path
) -> None:
    settings = OWN[model] | given | {"data_path": data, "checkpoint_dir": str(tmp_path)}
    trainer, test = recboles_loop(model, "cycle", settings)
    wanted = dict(trainer.evaluate(test, load_best_model=False))
    assert our_loop(model, "cycle", settings).run() == wanted
    assert any(0 < value < 1 for value in wanted.values())


class Diary(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.users = 0

    def started(self, loader: Any) -> None:
        self.said.append("started")

    def predicted(self, interaction: Any, scores: torch.Tensor) -> None:
        assert scores.isfinite().all()
        self.said.append("predicted")

    def ranked(self, batch: RankedBatch) -> None:
        assert (batch.scores[:, 0] == -torch.inf).all()
        assert batch.scores.gather(1, batch.targets[:, None]).isfinite().all()
        self.users += len(batch.targets)
        self.said.append("ranked")

    def finished(self) -> None:
        self.said.append("finished")


def test_observers_see_each_batch_before_and_after_it_is_ranked(data: str, tmp_path: Path) -> None:
    settings = SMALL | {"data_path": data, "eval_batch_size": 25, "checkpoint_dir": str(tmp_path)}
    config = RunConfig("SASRec", "cycle", settings=settings)
    splits = split_dataset(config, load_dataset(config))
    model, diary = get_model("SASRec")(config, splits.train._dataset), Diary()
    evaluation = Evaluation(model, splits.test, config, observers=[diary])
    first = evaluation.run()
    assert diary.said == ["started", *["predicted", "ranked"] * 3, "finished"]
    assert diary.users == 60 and evaluation.run() == first


def test_scores_can_be_replaced_before_they_are_ranked(data: str, tmp_path: Path) -> None:
    settings = SMALL | {"data_path": data, "checkpoint_dir": str(tmp_path)}
    config = RunConfig("SASRec", "cycle", settings=settings)
    splits = split_dataset(config, load_dataset(config))
    model = get_model("SASRec")(config, splits.train._dataset)

    def right(interaction: Any, scores: torch.Tensor) -> torch.Tensor:
        targets = interaction["item_id"].unsqueeze(1)
        return scores.scatter(1, targets, torch.inf)

    result = Evaluation(model, splits.test, config, rescore=right).run()
    assert result["hit@1"] == 1.0 > Evaluation(model, splits.test, config).run()["hit@1"]


def test_all_runs_of_a_command_are_planned_before_the_first_trains(data: str) -> None:
    settings = SMALL | {"data_path": data}
    with pytest.raises(DataError, match="unknown dataset 'nowhere'"):
        api.run("SASRec", "cycle,nowhere", settings=settings)
    assert not Path("saved").exists()
