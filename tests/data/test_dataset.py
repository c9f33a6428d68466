"""One history a user, and yet the split, the targets and the candidates of RecBole's SASRec."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.dataset import HistoryDataset
from recbole_idiomoe.data.recbole_datasets import SequentialDataset
from tests.helpers import DATASET_SETTINGS, SMALL_ML_100K, write_dataset

Splits = dict[str, list[Any]]


def build(dataset: str, settings: dict[str, Any]) -> Splits:
    """Train, validation and test by RecBole's rows, ordered by exact times, and by ours."""
    config = RunConfig("SASRec", dataset, settings=settings)
    return {kind.__name__: kind(config).build() for kind in (SequentialDataset, HistoryDataset)}


@pytest.fixture(scope="module")
def ml_100k() -> Splits:
    return build("ml-100k", SMALL_ML_100K)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Equal timestamps, repeated items, and users of one to five interactions."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{rng.integers(30)}", float(rng.integers(3)))
        for user in range(60)
        for _ in range(1 + user % 12)
    ]
    rng.shuffle(rows)
    folder = tmp_path_factory.mktemp("data") / "tied"
    items = [(f"i{i}", f"title {i}", "a|b") for i in range(30)]
    path = write_dataset(folder, [(u, i, float(t)) for u, i, t in rows], items)
    settings = DATASET_SETTINGS | {"data_path": str(path), "MAX_ITEM_LIST_LENGTH": 5}
    return build("tied", settings)


@pytest.mark.parametrize("split", [0, 1, 2], ids=["train", "valid", "test"])
@pytest.mark.parametrize("data", ["ml_100k", "tied"])
def test_rows_are_those_of_recbole(data: str, split: int, request: pytest.FixtureRequest) -> None:
    splits = request.getfixturevalue(data)
    theirs, ours = splits["SequentialDataset"][split], splits["HistoryDataset"][split]
    assert len(theirs) == len(ours) > 0
    assert theirs.item_num == ours.item_num
    assert list(theirs.field2id_token["item_id"]) == list(ours.field2id_token["item_id"])
    index = np.arange(len(theirs))
    for field in ("user_id", "item_id", "item_length", "item_id_list"):
        expected, found = theirs[index][field].numpy(), ours[index][field].numpy()
        np.testing.assert_array_equal(expected, found, err_msg=field)


@pytest.mark.parametrize(("max_items", "room"), [(5, 99), (20, 99), (50, 999), (50, 20), (5, 3)])
@pytest.mark.parametrize("data", ["ml_100k", "tied"])
def test_windows_train_on_each_of_sasrecs_targets_once(
    data: str, max_items: int, room: int, request: pytest.FixtureRequest
) -> None:
    splits = request.getfixturevalue(data)
    theirs, ours = splits["SequentialDataset"][0], splits["HistoryDataset"][0]
    lengths = np.arange(ours.item_num) % 3 + 1
    windows = ours.training_windows(max_items, lengths, room)
    assert max(map(len, windows)) <= max_items + 1
    assert all(lengths[w[:-1]].sum() <= room for w in windows)
    rows = theirs[np.arange(len(theirs))]
    last = rows["item_id_list"].numpy()[np.arange(len(theirs)), rows["item_length"] - 1]
    expected = Counter(zip(last.tolist(), rows["item_id"].tolist(), strict=True))
    found = Counter(pair for w in windows for pair in pairwise(w.tolist()))
    assert expected == found


def plain_windows(train: Any, max_items: int, lengths: np.ndarray, room: int) -> list[Any]:
    """User by user, the newest window first, item by item."""
    found = []
    rows = train.inter_feat
    for user in np.unique(rows["user_id"]):
        ends = rows["history_end"][rows["user_id"] == user].numpy()
        first, last = ends.min() - 1, ends.max()
        while last > first:
            begin, tokens = last, 0
            while begin > first and last - begin < max_items:
                tokens += lengths[train.history_items[begin - 1]]
                if tokens > room and begin < last:
                    break
                begin -= 1
            found.append((int(user), train.history_items[begin : last + 1].tolist()))
            last = begin
    return found


@pytest.mark.parametrize(("max_items", "room"), [(5, 99), (50, 999), (50, 20), (5, 3), (4, 1)])
@pytest.mark.parametrize("data", ["ml_100k", "tied"])
def test_windows_are_those_of_the_plain_way(
    data: str, max_items: int, room: int, request: pytest.FixtureRequest
) -> None:
    train = request.getfixturevalue(data)["HistoryDataset"][0]
    limits = max_items, np.arange(train.item_num) % 3 + 1, room
    windows = train.training_windows(*limits)
    users = train.history_users[windows.starts]
    found = [(user, w.tolist()) for user, w in zip(users.tolist(), windows, strict=True)]
    assert found == plain_windows(train, *limits)


@pytest.mark.parametrize("split", [0, 1, 2], ids=["train", "valid", "test"])
@pytest.mark.parametrize("data", ["ml_100k", "tied"])
def test_what_rows_hold_is_what_recboles_hold(
    data: str, split: int, request: pytest.FixtureRequest
) -> None:
    splits = request.getfixturevalue(data)
    theirs, ours = splits["SequentialDataset"][split], splits["HistoryDataset"][split]
    held = set()
    for user, target, items, length in zip(
        *(theirs.inter_feat[f].tolist() for f in ("user_id", "item_id", "item_id_list")),
        theirs.inter_feat["item_length"].tolist(),
        strict=True,
    ):
        held |= {(user, item) for item in [target, *items[:length]]}
    users, items = ours.known_interactions()
    assert set(zip(users.tolist(), items.tolist(), strict=True)) == held


def test_no_window_reaches_into_validation_or_test(ml_100k: Splits) -> None:
    train, *held_out = ml_100k["HistoryDataset"]
    first_held_out = {}
    for split in reversed(held_out):
        rows = split[np.arange(len(split))]
        first_held_out.update(
            zip(rows["user_id"].tolist(), rows["history_end"].tolist(), strict=True)
        )
    rows = train[np.arange(len(train))]
    for user, end in zip(rows["user_id"].tolist(), rows["history_end"].tolist(), strict=True):
        assert end < first_held_out[user]


def test_histories_are_not_copied(ml_100k: Splits) -> None:
    train, valid, _ = ml_100k["HistoryDataset"]
    assert "item_id_list" not in train.inter_feat
    assert train.history_items is valid.history_items


def test_one_row_can_be_asked_for(ml_100k: Splits) -> None:
    theirs, ours = ml_100k["SequentialDataset"][2], ml_100k["HistoryDataset"][2]
    np.testing.assert_array_equal(theirs[[3]]["item_id_list"], ours[[3]]["item_id_list"])


def test_items_without_interactions_are_candidates_alike(tmp_path: Path) -> None:
    rows = [("u", f"i{n}", float(n)) for n in range(5)]
    items = [(f"i{n}", f"t{n}", "c") for n in range(9)]
    path = write_dataset(tmp_path / "wide", rows, items)
    splits = build("wide", DATASET_SETTINGS | {"data_path": str(path)})
    assert splits["SequentialDataset"][0].item_num == splits["HistoryDataset"][0].item_num == 10
