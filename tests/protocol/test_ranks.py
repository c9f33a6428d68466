"""Ranks of test targets: every metric of RecBole's follows from them, ties and all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.protocol.ranks import (
    NamedRanks,
    RankRecorder,
    Ranks,
    item_counts,
    ranks_among,
)
from recbole_idiomoe.protocol.splits import split_dataset
from recbole_idiomoe.protocol.ties import MASKED
from recbole_idiomoe.training.trainers import get_trainer
from tests.helpers import DATASET_SETTINGS, write_dataset
from tests.training.cycle import TINY, write_cycle

NAMES = ["Hit", "NDCG", "MRR", "Recall", "Precision", "MAP"]
SMALL = TINY | {"metrics": NAMES, "metric_decimal_place": 12, "epochs": 1, "eval_batch_size": 17}


class Fixed(torch.nn.Linear):
    """Gives users scores that are known."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__(1, 1)
        self.known = scores

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        return self.known[interaction["user_id"]].clone()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle")


def test_a_rank_counts_what_is_ahead_and_a_masked_target_is_last() -> None:
    keys = torch.tensor([[MASKED, 5, 9, 1], [MASKED, 5, MASKED, 1], [MASKED, 7, 8, 9]])
    assert ranks_among(keys, torch.tensor([1, 2, 3])).tolist() == [2, 4, 1]


@pytest.mark.parametrize("levels", [None, 4, 1], ids=["distinct", "ties", "all the same"])
@pytest.mark.parametrize("mask_seen", [True, False])
def test_metrics_of_ranks_are_recboles_however_ties_fall(
    levels: int | None, mask_seen: bool, data: Path, tmp_path: Path
) -> None:
    settings = SMALL | {"data_path": str(data), "checkpoint_dir": str(tmp_path)}
    settings["mask_seen"] = mask_seen
    config = RunConfig("SASRec", "cycle", settings=settings)
    dataset = load_dataset(config)
    splits = split_dataset(config, dataset)
    scores = torch.rand(dataset.user_num, dataset.item_num, generator=torch.manual_seed(0))
    scores = scores if levels is None else (scores * levels).floor()
    trainer = get_trainer("SASRec")(config, Fixed(scores))
    recorder = RankRecorder(tmp_path / "ranks.npz", splits.popularity)
    found = trainer.evaluate(splits.test, load_best_model=False, observers=[recorder])
    ranks = NamedRanks.load(tmp_path / "ranks.npz")
    assert len(found) == len(NAMES) * 3 and ranks.rank.min() >= 1 and len(ranks.rank) == 60
    assert {name: round(float(ranks.metric(name).mean()), 12) for name in found} == found
    assert trainer.evaluate(splits.test, load_best_model=False) == found


def test_what_a_user_had_alone_is_no_training_interaction(tmp_path: Path) -> None:
    rows = [("u", "a", 1.0), ("u", "b", 2.0), ("u", "c", 3.0), ("alone", "c", 4.0)]
    settings = DATASET_SETTINGS | {
        "data_path": str(write_dataset(tmp_path / "shop", rows)),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "item_text_fields": None,
        "topk": [1],
        "valid_metric": "NDCG@1",
    }
    dataset = load_dataset(RunConfig("Popularity", "shop", settings=settings))
    counts = item_counts(dataset)
    train, _, test = dataset.build()
    of_targets = np.bincount(test.inter_feat["item_id"], minlength=dataset.item_num)
    trained = np.bincount(train.split_items(), minlength=dataset.item_num)
    np.testing.assert_array_equal(counts - of_targets, trained)


def test_a_run_keeps_them_with_users_targets_and_what_they_are(data: Path) -> None:
    rows = [line.split("\t") for line in (data / "cycle/cycle.inter").read_text().splitlines()[1:]]
    histories: dict[str, list[str]] = {}
    for user, item, _ in rows:
        histories.setdefault(user, []).append(item)
    settings = SMALL | {"data_path": str(data)}
    models: dict[str, dict[str, Any]] = {
        "SASRec": {"n_layers": 1, "hidden_size": 16, "n_heads": 2},
        "IDIOMoE": {},
    }
    for model, own in models.items():
        (result,) = api.run(model, "cycle", settings=settings | own)
        ranks = NamedRanks.load(Path(result["folder"]) / "ranks.npz")
        found = result["test_result"]
        assert {name: round(float(ranks.metric(name).mean()), 12) for name in found} == found
        assert dict(zip(ranks.user, ranks.item, strict=True)) == {
            user: items[-1] for user, items in histories.items()
        }
        assert set(ranks.history) == {7}
        trained = [item for items in histories.values() for item in items[:-2]]
        assert ranks.popularity.tolist() == [trained.count(item) for item in ranks.item]
        (point,) = result["learning_curve"]
        assert point["valid"] == result["best_valid_result"]["ndcg@10"]
        assert point["epoch"] == 1 and point["train_loss"] > 0
        json.dumps(result)


@pytest.mark.parametrize("given", [{"cold_start": 0.2}, {"eval_args": {"mode": "pop20"}}], ids=str)
def test_a_target_without_one_rank_has_none(given: dict[str, Any], data: Path) -> None:
    own = {"n_layers": 1, "hidden_size": 16, "n_heads": 2, "mask_seen": False, "metrics": ["NDCG"]}
    settings = SMALL | {"data_path": str(data)} | own | given
    (result,) = api.run("SASRec", "cycle", settings=settings)
    assert not (Path(result["folder"]) / "ranks.npz").exists()


def test_what_ranks_cannot_tell_is_refused(tmp_path: Path) -> None:
    one = np.ones(1, dtype=int)
    ranks = Ranks(one, one, one)
    for metric in ("gauc", "hit", "ndcg@x"):
        with pytest.raises(IdiomoeError, match="does not follow from ranks"):
            ranks.metric(metric)
    (tmp_path / "ranks.npz").write_bytes(b"PK nothing")
    for name in ("ranks.npz", "none.npz"):
        with pytest.raises(IdiomoeError, match="holds no ranks"):
            NamedRanks.load(tmp_path / name)
