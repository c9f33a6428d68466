"""Training windows as rows of RecBole's loaders: nothing lost, nothing of the other splits."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recbole.data import data_preparation

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.dataset import HistoryDataset, WindowDataset
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.protocol.seen_items import SeenItems
from tests.helpers import DATASET_SETTINGS, write_dataset


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Users of three to 27 interactions, items repeated, and windows of at most five items."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{rng.integers(30)}", float(step * 1000 + user))
        for user in range(50)
        for step in range(3 + user % 25)
    ]
    items = [(f"i{i}", f"title {i}", "a|b") for i in range(30)]
    path = write_dataset(tmp_path_factory.mktemp("data") / "shop", rows, items)
    settings = DATASET_SETTINGS | {"data_path": str(path), "MAX_ITEM_LIST_LENGTH": 5}
    return RunConfig("SASRecCE", "shop", settings=settings | {"train_batch_size": 7})


@pytest.fixture(scope="module")
def splits(config: RunConfig) -> dict[str, list[Any]]:
    return {kind.__name__: kind(config).build() for kind in (HistoryDataset, WindowDataset)}


def whole(split: Any) -> Any:
    return split[np.arange(len(split))]


def sequence(rows: Any, row: int) -> list[int]:
    inputs = rows["item_id_list"][row][: rows["item_length"][row]].tolist()
    return [*inputs, rows["item_id"][row].item()]


def test_rows_are_the_training_windows(splits: dict[str, list[Any]]) -> None:
    windows = splits["WindowDataset"][0]
    rows = whole(windows)
    wanted = splits["HistoryDataset"][0].training_windows(5, np.ones(31, dtype=int), room=5)
    assert sorted(sequence(rows, i) for i in range(len(rows))) == sorted(w.tolist() for w in wanted)


def test_every_training_target_is_in_one_window(splits: dict[str, list[Any]]) -> None:
    full, rows = whole(splits["HistoryDataset"][0]), whole(splits["WindowDataset"][0])
    wanted = Counter(zip(full["user_id"].tolist(), full["item_id"].tolist(), strict=True))
    found = Counter(
        (rows["user_id"][i].item(), item)
        for i in range(len(rows))
        for item in sequence(rows, i)[1:]
    )
    assert found == wanted
    assert len(rows) < len(full)


@pytest.mark.parametrize("split", [1, 2], ids=["valid", "test"])
def test_what_is_evaluated_is_unchanged(split: int, splits: dict[str, list[Any]]) -> None:
    ours, plain = (whole(splits[name][split]) for name in ("WindowDataset", "HistoryDataset"))
    for field in ("user_id", "item_id", "item_length", "item_id_list"):
        np.testing.assert_array_equal(ours[field].numpy(), plain[field].numpy(), err_msg=field)


def test_as_many_items_are_seen(splits: dict[str, list[Any]]) -> None:
    ours, plain = (SeenItems(splits[name][:2]) for name in ("WindowDataset", "HistoryDataset"))
    np.testing.assert_array_equal(ours.items, plain.items)
    np.testing.assert_array_equal(ours.offsets, plain.offsets)


@pytest.mark.parametrize("split", [0, 1, 2], ids=["train", "valid", "test"])
def test_times_are_those_of_the_items(split: int, splits: dict[str, list[Any]]) -> None:
    rows = whole(splits["WindowDataset"][split])
    times, lengths = rows["timestamp_list"], rows["item_length"]
    users = splits["WindowDataset"][split].id2token("user_id", rows["user_id"].numpy())
    for row, length in enumerate(lengths.tolist()):
        user = int(users[row].removeprefix("u"))
        last = (rows["timestamp"][row].item() - user) / 1000
        steps = [1000 * (last - length + n) + user for n in range(length)]
        assert times[row].tolist() == steps + [0.0] * (5 - length)


def test_recboles_loader_gives_each_window_once_an_epoch(config: RunConfig) -> None:
    train, *_ = data_preparation(config, load_dataset(config))
    rows = whole(train._dataset)
    for _ in range(2):
        batches = list(train)
        seen = [sequence(batch, i) for batch in batches for i in range(len(batch))]
        assert sorted(seen) == sorted(sequence(rows, i) for i in range(len(rows)))
        assert {len(batch) for batch in batches[:-1]} == {7}


def test_counts_are_of_the_training_split_alone(
    config: RunConfig, splits: dict[str, list[Any]]
) -> None:
    """By hand, from the file: all but each user's last two interactions; of three, the first two
    are training and validation has none."""
    lines = (Path(config.data_root) / "shop" / "shop.inter").read_text().splitlines()[1:]
    histories: dict[str, list[str]] = {}
    for user, item, _ in (line.split("\t") for line in lines):
        histories.setdefault(user, []).append(item)
    train = splits["HistoryDataset"][0]
    wanted = Counter(
        item for items in histories.values() for item in items[: max(2, len(items) - 2)]
    )
    found = Counter(train.id2token("item_id", train.split_items()).tolist())
    assert found == wanted
