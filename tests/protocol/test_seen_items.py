"""Masking reaches every model through the loader, and off means RecBole's own numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.models.registry import get_dataset_class, get_model
from recbole_idiomoe.protocol import seen_items
from recbole_idiomoe.protocol.seen_items import SeenItems
from recbole_idiomoe.protocol.splits import split_dataset
from tests.helpers import SMALL_ML_100K, write_dataset


def loaders(model: str, **settings: Any) -> tuple[Any, ...]:
    config = RunConfig(model, "ml-100k", settings=SMALL_ML_100K | settings)
    dataset = get_dataset_class(model)(config)
    splits = split_dataset(config, dataset)
    return splits.train, splits.valid, splits.test


def raw_histories() -> dict[int, list[int]]:
    """Each user's items in time order, straight from the interactions."""
    config = RunConfig("SASRec", "ml-100k", settings=SMALL_ML_100K)
    frame = get_dataset_class("SASRec")(config).inter_feat
    # RecBole sorts by float32 seconds: what lies within a minute keeps the file's order.
    frame = frame.assign(timestamp=frame["timestamp"].astype("float32"))
    frame = frame.sort_values("timestamp", kind="stable")
    return {user: rows["item_id"].tolist() for user, rows in frame.groupby("user_id")}


@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
def test_exactly_the_earlier_items_are_masked(model: str) -> None:
    _, valid, test = loaders(model)
    histories = raw_histories()
    for loader, held_out in ((valid, 2), (test, 1)):
        checked = 0
        for interaction, (row, item), _, positive in loader:
            for index, user in enumerate(interaction["user_id"].tolist()):
                target, seen = histories[user][-held_out], histories[user][:-held_out]
                assert positive[index] == target
                assert sorted(item[row == index].tolist()) == sorted(set(seen) - {target})
                checked += 1
        assert checked == len(histories)


@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
@pytest.mark.parametrize("group_by", ["user", "none"])
def test_of_a_split_by_ratio_earlier_targets_are_masked_too(model: str, group_by: str) -> None:
    by_ratio = {"split": {"RS": [6, 2, 2]}, "group_by": group_by}
    splits = loaders(model, eval_args=by_ratio, MAX_ITEM_LIST_LENGTH=3)
    histories = raw_histories()
    checked = 0
    for loader in splits[1:]:
        for interaction, (row, item), _, positive in loader:
            for index, user in enumerate(interaction["user_id"].tolist()):
                target = int(positive[index])
                seen = histories[user][: histories[user].index(target)]
                assert sorted(item[row == index].tolist()) == sorted(seen)
                checked += 1
    assert checked > 2 * len(histories)


def test_the_mask_reaches_beyond_the_longest_history_that_is_read() -> None:
    train, valid, _ = loaders("SASRec", MAX_ITEM_LIST_LENGTH=3)
    seen = SeenItems([train._dataset])
    histories = raw_histories()
    for user in valid._dataset.inter_feat["user_id"].tolist():
        assert sorted(seen.of(user)) == sorted(set(histories[user][:-2]))


@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
def test_pieces_and_splits_make_the_whole(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid, _ = loaders(model, MAX_ITEM_LIST_LENGTH=3)
    splits = [train._dataset, valid._dataset]
    whole = SeenItems(splits)
    monkeypatch.setattr(seen_items, "ROWS", 7)
    for made in (SeenItems(splits), SeenItems(splits[:1]).with_split(splits[1])):
        np.testing.assert_array_equal(made.items, whole.items)
        np.testing.assert_array_equal(made.offsets, whole.offsets)


def test_sampled_candidates_are_refused() -> None:
    with pytest.raises(SettingError, match="mask_seen=True needs the full ranking"):
        loaders("SASRec", eval_args={"mode": "uni100"})


def test_off_gives_recboles_stock_numbers_to_the_last_digit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{i}", float(t))
        for u in range(80)
        for t, i in enumerate(rng.permutation(30)[:9])
    ]
    settings = SMALL_ML_100K | {
        "data_path": str(write_dataset(tmp_path / "data" / "toy", rows)),
        "user_inter_num_interval": None,
        "epochs": 2,
        "mask_seen": False,
        "checkpoint_dir": str(tmp_path),
        "metric_decimal_place": 12,
        "hidden_size": 16,
        "inner_size": 16,
        "n_layers": 1,
    }
    config = RunConfig("SASRec", "toy", settings=settings)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model("SASRec")(config, train._dataset)
    trainer = Trainer(config, model)
    _, stock_valid = trainer.fit(train, valid)
    stock_test = trainer.evaluate(test)

    (result,) = api.run("SASRec", "toy", settings=settings)
    assert result["test_result"] == dict(stock_test)
    assert result["best_valid_result"] == dict(stock_valid)

    (masked,) = api.run("SASRec", "toy", settings=settings | {"mask_seen": True})
    assert masked["test_result"] != result["test_result"]
