"""Items that score alike are ranked as by chance, and all others by their scores alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.protocol.description import protocol
from recbole_idiomoe.protocol.evaluation import Evaluation
from recbole_idiomoe.protocol.ranks import NamedRanks, RankRecorder
from recbole_idiomoe.protocol.splits import split_dataset
from recbole_idiomoe.protocol.ties import MASKED, TieBreaker, scores_alone
from recbole_idiomoe.report.formatting import protocol_line
from tests.helpers import DATASET_SETTINGS, write_dataset

ITEMS, USERS = 200, 2000
SETTINGS = DATASET_SETTINGS | {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "item_text_fields": None,
    "metrics": ["Hit", "NDCG", "MRR"],
    "topk": [10, 50],
    "metric_decimal_place": 12,
    "eval_batch_size": 300,
}


class Loader:
    """Stands in for a loader of RecBole's with this many rows."""

    def __init__(self, rows: int) -> None:
        self.sample_size = rows


class Scores(torch.nn.Linear):
    """Gives an item the same score for every user."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__(1, 1)
        self.scores = scores

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        return self.scores.repeat(len(interaction), 1)


def write_shop(folder: Path, popular_first: bool) -> Path:
    """Interactions with items of which i0 is by far the most popular, then i1, and so on.

    RecBole numbers items as they appear, so these have low ids either first or last.
    """
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, ITEMS + 1)
    order = range(ITEMS) if popular_first else reversed(range(ITEMS))
    rows = [(f"u{n}", f"i{item}", 0.0) for n, item in enumerate(order)]
    for user in range(USERS):
        items = random.choice(ITEMS, size=4, replace=False, p=share / share.sum())
        rows += [(f"u{user}", f"i{item}", 1.0 + n) for n, item in enumerate(items)]
    return write_dataset(folder / "shop", rows)


@pytest.fixture(scope="module")
def popular_first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("data"), popular_first=True)


def evaluated(data: Path, scores: Any, ranks: Path, **given: Any) -> dict[str, float]:
    """Test metrics of the items' ``scores`` by their ids, with the ranks saved."""
    settings = SETTINGS | {"data_path": str(data)} | given
    config = RunConfig("SASRec", "shop", settings=settings)
    dataset = load_dataset(config)
    splits = split_dataset(config, dataset)
    ids = dataset.field2id_token["item_id"]
    by_row = torch.tensor([0.0, *(float(scores(item)) for item in ids[1:])])
    recorder = RankRecorder(ranks, splits.popularity)
    return Evaluation(Scores(by_row), splits.test, config, observers=[recorder]).run()


@pytest.mark.parametrize("mask_seen", [True, False])
def test_a_constant_score_is_worth_what_chance_is(
    mask_seen: bool, popular_first: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ranks.npz"
    found = evaluated(popular_first, lambda item: 1, file, mask_seen=mask_seen)
    error = (0.05 * 0.95 / USERS) ** 0.5
    assert found["hit@10"] == pytest.approx(10 / ITEMS, abs=4 * error)
    ranks = NamedRanks.load(file)
    for name, value in found.items():
        assert ranks.metric(name).mean() == pytest.approx(value, abs=1e-12)
    # No length of list is measured better than chance, nor is any item.
    for k in (1, 100, 150):
        share = k / ITEMS
        error = (share * (1 - share) / USERS) ** 0.5
        assert ranks.metric(f"hit@{k}").mean() == pytest.approx(share, abs=4 * error + 0.01)
    most_popular = ranks.rank[ranks.item == "i0"]
    assert len(most_popular) > 150
    assert most_popular.mean() == pytest.approx(ITEMS / 2, rel=0.15)


def test_the_order_of_item_ids_does_not_matter(popular_first: Path, tmp_path: Path) -> None:
    def in_two_halves(item: str) -> int:
        return int(item[1:]) % 2

    popular_last = write_shop(tmp_path, popular_first=False)
    first, last = (
        evaluated(data, in_two_halves, tmp_path / "ranks.npz")
        for data in (popular_first, popular_last)
    )
    error = (0.05 * 0.95 / USERS) ** 0.5
    assert first["hit@10"] == pytest.approx(last["hit@10"], abs=4 * 2**0.5 * error)


def test_keys_order_as_scores_do_whatever_these_are() -> None:
    random = np.random.default_rng(1)
    every = [0.0, -0.0, 1e-45, -1e-45, 1e30, -1e30, *random.normal(size=30), *random.normal(size=5)]
    scores = torch.tensor([every, every[::-1]]).float()
    scores[:, 3] = -torch.inf
    keys = TieBreaker(Loader(2)).keys(scores)
    assert torch.equal(scores_alone(keys).argsort(stable=True), (scores + 0.0).argsort(stable=True))
    for row, key in zip(scores, keys, strict=True):
        less = row[:, None] < row
        assert torch.equal(less, less & (key[:, None] < key))
    assert ((scores == -torch.inf) == (keys == MASKED)).all()
    half = scores.bfloat16()
    found, wanted = (TieBreaker(Loader(2)).keys(each) for each in (half, half.float()))
    assert torch.equal(found, wanted)


def test_scores_without_ties_have_the_lists_of_torch() -> None:
    scores = torch.rand(50, 400, generator=torch.Generator().manual_seed(0))
    keys = TieBreaker(Loader(50)).keys(scores)
    assert torch.equal(keys.topk(20).indices, scores.topk(20).indices)


@pytest.mark.parametrize("values", [2, 30, 400, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_lists_are_those_of_the_keys(values: int, dtype: torch.dtype) -> None:
    """Rows with ties everywhere, with a few ties, and with none."""
    random = np.random.default_rng(values)
    scores = torch.from_numpy(random.integers(values, size=(40, 300)) / values - 0.5).to(dtype)
    scores[:, :3] = -torch.inf
    scores[:5, 7:] = -torch.inf  # fewer candidates than places
    keys, lists = TieBreaker(Loader(40)), TieBreaker(Loader(40))
    for part in scores.split(11):
        wanted = keys.keys(part).topk(10)
        found = lists.break_in_lists(part.clone(), 10).topk(10)
        is_listed = wanted.values > MASKED
        assert torch.equal(is_listed, found.values > -torch.inf)
        assert torch.equal(wanted.indices[is_listed], found.indices[is_listed])


def test_lists_without_ties_cost_no_copy() -> None:
    scores = torch.rand(50, 400, generator=torch.Generator().manual_seed(0))
    assert TieBreaker(Loader(50)).break_in_lists(scores, 20) is scores


def test_all_tied_items_are_told_apart_in_an_order_that_batches_do_not_change() -> None:
    scores = torch.zeros(30, 50)
    whole = TieBreaker(Loader(30)).keys(scores)
    assert all(len(row.unique()) == 50 for row in whole)
    assert len({tuple(row.tolist()) for row in whole.argsort()}) == 30
    parts = TieBreaker(Loader(30))
    assert torch.equal(whole, torch.cat([parts.keys(part) for part in scores.split(7)]))


def test_metrics_of_ties_do_not_depend_on_batches_or_the_seed(
    popular_first: Path, tmp_path: Path
) -> None:
    first, *others = (
        evaluated(popular_first, lambda item: 1, tmp_path / "ranks.npz", **given)
        for given in ({}, {"eval_batch_size": 77}, {"seed": 5})
    )
    assert others == [first, first]


def test_sampled_candidates_that_tie_are_ranked_by_chance(
    popular_first: Path, tmp_path: Path
) -> None:
    given = {"eval_args": {"mode": "uni19"}, "mask_seen": False, "eval_batch_size": 20_000}
    settings = SETTINGS | {"data_path": str(popular_first)} | given
    config = RunConfig("SASRec", "shop", settings=settings)
    splits = split_dataset(config, load_dataset(config))

    class Constant(torch.nn.Linear):
        def predict(self, interaction: Any) -> torch.Tensor:
            return torch.ones(len(interaction))

    found = Evaluation(Constant(1, 1), splits.test, config).run()
    # RecBole draws with replacement: 19 draws are about 18 items, beside the target.
    assert found["hit@10"] == pytest.approx(10 / 19, abs=0.05)


def test_gauc_still_takes_the_mean_rank_of_ties(popular_first: Path, tmp_path: Path) -> None:
    given = {"metrics": ["GAUC", "NDCG"], "mask_seen": True}
    found = evaluated(popular_first, lambda item: 1, tmp_path / "ranks.npz", **given)
    assert found["gauc"] == pytest.approx(0.5, abs=1e-6)


def test_the_protocol_says_how_ties_are_ranked(popular_first: Path) -> None:
    settings = SETTINGS | {"data_path": str(popular_first)}
    config = RunConfig("Popularity", "shop", settings=settings)
    assert "ties in random order" in protocol_line(protocol(config, ITEMS))
    (result,) = api.run("Popularity", "shop", settings=settings)
    assert result["protocol"]["ties"] == "in random order"
