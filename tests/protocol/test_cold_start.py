"""Seen and unseen targets apart, by the epsilon rule, against lists made by hand."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api, load
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.cold_start import unseen_items
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.protocol.cold_start import evaluate_cold_start
from recbole_idiomoe.protocol.evaluation import Observer, RankedBatch
from recbole_idiomoe.protocol.splits import split_dataset
from recbole_idiomoe.training.trainers import get_trainer
from tests.helpers import SMALL_ML_100K
from tests.training.cycle import TINY, titles_of, write_cycle

METRICS = [f"{metric}@{k}" for metric in ("hit", "ndcg", "mrr") for k in (5, 10, 20)]


class Fixed(torch.nn.Linear):
    """A model whose scores are known, row by user."""

    def __init__(self, scores: torch.Tensor, ranks_unseen_items: bool = True) -> None:
        super().__init__(1, 1)
        self.known = scores
        self.ranks_unseen_items = ranks_unseen_items

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        return self.known[interaction["user_id"]].clone()


class Start:
    """A cold start on ml-100k with a model of known scores."""

    def __init__(self, place: Path, distinct: int | None = None, **options: Any) -> None:
        settings = SMALL_ML_100K | {"cold_start": 0.3, "metric_decimal_place": 12}
        self.config = RunConfig("SASRec", "ml-100k", settings=settings)
        self.config["checkpoint_dir"] = str(place)
        dataset = load_dataset(self.config)
        self.splits = split_dataset(self.config, dataset)
        self.unseen, self.test = unseen_items(dataset), self.splits.test
        shape = (dataset.user_num, dataset.item_num)
        generator = torch.Generator().manual_seed(0)
        known = torch.rand(shape, generator=generator)
        known[:, torch.from_numpy(self.unseen)] += 0.3  # so that the rule has something to do
        rows = self.test._dataset.inter_feat
        known[rows["user_id"], rows["item_id"]] += 0.4
        self.known = known if distinct is None else (known * distinct).floor()
        self.trainer = get_trainer("SASRec")(self.config, Fixed(self.known, **options))

    def evaluate(self, epsilon: float) -> tuple[dict[str, float], dict[str, Any]]:
        self.config["cold_start_epsilon"] = epsilon
        return evaluate_cold_start(self.trainer, self.splits, load_best_model=False)

    def ranks(self, k: int, epsilon: float) -> tuple[list[int | None], list[bool]]:
        """By hand: where each test target stands in its list of ``k``, and whether it is unseen."""
        unseen, ranks, apart = set(self.unseen.tolist()), [], []
        for interaction, (row, item), _, targets in self.test:
            scores = self.known[interaction["user_id"]].clone()
            scores[row, item] = -np.inf
            for index, target in enumerate(targets.tolist()):
                listed: list[int] = []
                for candidate in (scores[index, 1:].argsort(descending=True) + 1).tolist():
                    taken = sum(item in unseen for item in listed)
                    if candidate not in unseen or taken < math.floor(round(epsilon * k, 6)):
                        listed.append(candidate)
                    if len(listed) == k:
                        break
                ranks.append(listed.index(target) + 1 if target in listed else None)
                apart.append(target in unseen)
        return ranks, apart


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.29, 0.6])
def test_metrics_are_those_of_lists_made_by_hand(epsilon: float, tmp_path: Path) -> None:
    start = Start(tmp_path)
    every, apart = start.evaluate(epsilon)
    assert apart["items"] == len(start.unseen)
    for k in (5, 10, 20):
        ranks, is_unseen = start.ranks(k, epsilon)
        assert apart["unseen_targets"] == sum(is_unseen) > 50
        parts = {
            "all": (every, ranks),
            "seen": (apart["seen"], [r for r, u in zip(ranks, is_unseen, strict=True) if not u]),
            "unseen": (apart["unseen"], [r for r, u in zip(ranks, is_unseen, strict=True) if u]),
        }
        for name, (found, wanted) in parts.items():
            hits = [rank for rank in wanted if rank]
            assert list(found) == METRICS, name
            assert found[f"hit@{k}"] == pytest.approx(len(hits) / len(wanted), abs=1e-9)
            gains = sum(1 / math.log2(rank + 1) for rank in hits)
            assert found[f"ndcg@{k}"] == pytest.approx(gains / len(wanted), abs=1e-9)
            reciprocal = sum(1 / rank for rank in hits)
            assert found[f"mrr@{k}"] == pytest.approx(reciprocal / len(wanted), abs=1e-9)
    # The rule bites, and not everywhere.
    assert (apart["unseen"]["hit@20"] > 0) == (epsilon > 0)
    assert (apart["unseen"]["hit@5"] > 0) == (epsilon * 5 >= 1)
    assert apart["seen"]["hit@5"] > 0


@pytest.mark.parametrize("distinct", [None, 12], ids=["no ties", "ties"])
def test_epsilon_1_is_recboles_own_evaluation_to_the_last_digit(
    distinct: int | None, tmp_path: Path
) -> None:
    start = Start(tmp_path, distinct)
    recboles = dict(start.trainer.evaluate(start.test, load_best_model=False))
    every, apart = start.evaluate(1.0)
    assert every == recboles and list(every) == METRICS
    assert start.evaluate(0.1)[0] != recboles
    count, unseen = len(start.test._dataset), apart["unseen_targets"]
    for name, value in every.items():
        parts = apart["unseen"][name] * unseen + apart["seen"][name] * (count - unseen)
        assert value == pytest.approx(parts / count, abs=1e-9)


def test_the_trainer_is_as_it_was_afterwards(tmp_path: Path) -> None:
    start = Start(tmp_path)
    before = dict(start.trainer.evaluate(start.test, load_best_model=False))
    start.evaluate(0.1)
    assert dict(start.trainer.evaluate(start.test, load_best_model=False)) == before


def test_a_model_that_cannot_rank_them_has_no_unseen_candidates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = Start(tmp_path, ranks_unseen_items=False)
    ranks, is_unseen = start.ranks(10, 0.0)
    with caplog.at_level(logging.INFO):
        every, apart = start.evaluate(1.0)
    assert caplog.text.count("SASRec cannot rank unseen items") == 1
    assert apart["unseen"] is None
    hits = [rank for rank, unseen in zip(ranks, is_unseen, strict=True) if rank and not unseen]
    assert every["hit@10"] == pytest.approx(len(hits) / len(ranks), abs=1e-9)
    seen = len(ranks) - sum(is_unseen)
    assert apart["seen"]["hit@10"] == pytest.approx(len(hits) / seen, abs=1e-9)


def test_a_masked_target_is_never_found_in_a_short_catalogue(tmp_path: Path) -> None:
    start = Start(tmp_path, ranks_unseen_items=False)
    seen = np.setdiff1d(np.arange(1, start.known.shape[1]), start.unseen)
    start.unseen = np.r_[start.unseen, seen[5:]]  # lists of 20, of which 5 can be filled
    start.splits.dataset.unseen_items = start.unseen
    every, _ = start.evaluate(1.0)
    assert every["hit@20"] == every["hit@5"] < 0.05


@pytest.mark.parametrize("mask_seen", [True, False])
def test_validation_does_not_know_unseen_items(mask_seen: bool, tmp_path: Path) -> None:
    settings = SMALL_ML_100K | {"cold_start": 0.3, "mask_seen": mask_seen}
    config = RunConfig("SASRec", "ml-100k", settings=settings)
    config["checkpoint_dir"] = str(tmp_path)
    dataset = load_dataset(config)
    unseen = unseen_items(dataset)
    splits = split_dataset(config, dataset)
    trainer = get_trainer("SASRec")(config, Fixed(torch.rand(dataset.user_num, dataset.item_num)))
    checked: dict[bool, int] = {True: 0, False: 0}

    class Candidates(Observer):
        def __init__(self, left_out: bool) -> None:
            self.left_out = left_out

        def ranked(self, batch: RankedBatch) -> None:
            scores, targets = batch.scores, batch.targets
            found = scores[:, torch.from_numpy(unseen)]
            if self.left_out:
                assert (found == -torch.inf).all()
            else:
                assert (found > -torch.inf).all()
            assert torch.isfinite(scores[torch.arange(len(targets)), targets]).all()
            masked = (scores == -torch.inf).sum(dim=1)
            assert (masked > 1 + self.left_out * len(unseen)).all() == mask_seen
            checked[self.left_out] += len(targets)

    for loader, left_out in ((splits.valid, True), (splits.test, False)):
        trainer.evaluate(loader, load_best_model=False, observers=[Candidates(left_out)])
        assert checked[left_out] == len(loader._dataset)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metrics": ["Hit", "NDCG", "GAUC"]}, "GAUC is not of a ranked list's top K"),
        ({"metrics": ["NDCG", "shannonentropy"]}, "shannonentropy is not of"),
        ({"eval_args": {"split": {"RS": [8, 1, 1]}}}, "split={LS: valid_and_test}"),
        ({"eval_args": {"mode": "uni100"}}, "needs the full ranking"),
        ({"eval_args": {"mode": {"valid": "full", "test": "uni50"}}}, "needs the full ranking"),
        ({"cold_start": 0.6}, "between 0.0 and 0.5"),
        ({"cold_start_epsilon": -0.1}, "between 0.0 and 1.0"),
        ({"cold_start": True}, "must be a number"),
    ],
)
def test_what_does_not_go_with_a_cold_start_is_one_line(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError) as error:
        RunConfig("SASRec", "ml-100k", settings=SMALL_ML_100K | {"cold_start": 0.1} | settings)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_runs_of_able_and_unable_models(tmp_path: Path) -> None:
    path = write_cycle(tmp_path / "cycle")
    settings = TINY | {"data_path": str(path), "epochs": 2, "cold_start": 0.2}
    settings |= {"embedding_size": 16, "hidden_size": 16, "num_layers": 1}
    names = ["IDIOMoE", "TextAttrLLM", "IDTransformer", "GRU4Rec"]
    results = {r["model"]: r for r in api.run(names, "cycle", settings=settings)}
    first = results["IDIOMoE"]
    for name, result in results.items():
        able = name in ("IDIOMoE", "TextAttrLLM")
        assert result["protocol"] == first["protocol"]
        assert result["protocol"]["cold_start"] == {"unseen_test_items": 0.2, "epsilon": 0.1}
        cold_start = result["cold_start"]
        assert set(cold_start) == {
            "share", "epsilon", "items", "unseen_targets", "seen", "unseen"
        }  # fmt: skip
        for part in ("share", "epsilon", "items", "unseen_targets"):
            assert cold_start[part] == first["cold_start"][part]
        assert (cold_start["unseen"] is not None) == able
        assert set(cold_start["seen"]) == set(result["test_result"])

        recommender = load(result["folder"])
        unseen = {recommender.catalog.item_ids[row] for row in recommender.catalog.untrained}
        assert len(unseen) == cold_start["items"] > 0
        every = {item.item_id for item in recommender.recommend(["i3"], 100, exclude_seen=False)}
        assert unseen <= every if able else not unseen & every


def test_training_does_not_know_unseen_items(tmp_path: Path) -> None:
    """Whatever the unseen items say, the model is the same but for their rows."""
    settings = TINY | {"epochs": 1, "cold_start": 0.2, "use_text": False}
    titles = titles_of(40)

    def trained(name: str) -> tuple[torch.Tensor, Catalog]:
        path = write_cycle(tmp_path / name / "cycle", titles=titles)
        (result,) = api.run("IDIOMoE", "cycle", settings=settings | {"data_path": str(path)})
        model = load(result["folder"]).catalog_lm
        assert model is not None
        return model.lm.item_table.rows.detach(), model.catalog

    rows, catalog = trained("first")
    unseen = catalog.untrained
    for row in unseen:
        titles[int(catalog.item_ids[row][1:])] = "blue thing"
    others, other_catalog = trained("second")
    assert other_catalog.untrained == unseen and other_catalog.texts != catalog.texts
    seen = np.setdiff1d(np.arange(len(rows)), unseen)
    assert torch.equal(rows[seen], others[seen])
    assert not torch.equal(rows[unseen], others[unseen])
