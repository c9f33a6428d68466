"""Held-out items are in test rows alone, for every model, and nothing else changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import read_catalog
from recbole_idiomoe.data.cold_start import unseen_items
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.options import TextOptions
from tests.helpers import DATASET_SETTINGS, SMALL_ML_100K, write_dataset


def load(model: str, dataset: str = "ml-100k", **settings: Any) -> Any:
    given = settings if dataset != "ml-100k" else SMALL_ML_100K | settings
    return load_dataset(RunConfig(model, dataset, settings=given))


def splits(dataset: Any) -> list[list[tuple[str, tuple[str, ...], str]]]:
    """User, history and target of every row of RecBole's three splits, by name."""
    found = []
    for split in dataset.build():
        names = split.field2id_token[split.iid_field]
        rows = split[np.arange(len(split))]
        histories, targets = rows["item_id_list"].numpy(), rows["item_id"].numpy()
        users = split.field2id_token[split.uid_field][rows["user_id"].numpy()]
        found.append(
            [
                (user, tuple(names[item] for item in history if item), names[target])
                for user, history, target in zip(users, histories, targets, strict=True)
            ]
        )
    return found


def names_of(dataset: Any) -> set[str]:
    return set(dataset.field2id_token[dataset.iid_field][unseen_items(dataset)])


@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
@pytest.mark.parametrize(("share", "seed"), [(0.05, 2020), (0.3, 1)])
def test_unseen_items_are_in_test_targets_alone(model: str, share: float, seed: int) -> None:
    whole = splits(load(model))
    dataset = load(model, cold_start=share, seed=seed)
    unseen = names_of(dataset)
    train, valid, test = splits(dataset)

    targets = {user: target for user, _, target in whole[2]}
    assert len(unseen) == round(share * len(set(targets.values())))
    assert unseen < set(targets.values())
    for user, history, target in [*train, *valid]:
        assert not unseen & {*history, target}, user
    assert any(unseen & set(history) for _, history, _ in whole[0])  # there was something to do
    for user, history, target in test:
        assert not unseen & set(history)
        assert target == targets[user]  # whoever is tested is tested on the same item
    assert {target for *_, target in test} >= unseen


def test_what_is_left_is_as_it_was() -> None:
    """Each history is the whole one less the unseen items, in RecBole's own order."""
    longest = {"MAX_ITEM_LIST_LENGTH": 50}
    whole, cold = load("SASRec", **longest), load("SASRec", cold_start=0.1, **longest)
    unseen = names_of(cold)
    before, after = ({u: (*h, t) for u, h, t in splits(d)[2]} for d in (whole, cold))
    assert len(after) == len(before)
    for user, items in after.items():
        *history, target = before[user]
        assert items == (*(item for item in history if item not in unseen), target)


def test_every_model_has_the_same_items_and_every_seed_its_own() -> None:
    found = [names_of(load(model, cold_start=0.1)) for model in ("SASRec", "IDIOMoE", "GRU4Rec")]
    assert found[0] == found[1] == found[2]
    assert names_of(load("SASRec", cold_start=0.1, seed=3)) != found[0]


def test_the_rows_of_the_items_survive_the_split() -> None:
    config = RunConfig("IDIOMoE", "ml-100k", settings=SMALL_ML_100K | {"cold_start": 0.1})
    dataset = load_dataset(config)
    rows = unseen_items(dataset)
    assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
    for split in dataset.build():
        assert np.array_equal(unseen_items(split), rows)
        assert read_catalog(split, TextOptions.from_mapping(config)).untrained == rows.tolist()


def test_without_a_cold_start_nothing_is_unseen() -> None:
    config = RunConfig("IDIOMoE", "ml-100k", settings=SMALL_ML_100K)
    dataset = load_dataset(config)
    assert len(unseen_items(dataset)) == 0
    assert read_catalog(dataset.build()[0], TextOptions.from_mapping(config)).untrained == []


def shop(tmp_path: Path, histories: dict[str, list[str]], **settings: Any) -> dict[str, Any]:
    rows = [
        (user, item, float(step))
        for user, items in histories.items()
        for step, item in enumerate(items)
    ]
    names = sorted({item for items in histories.values() for item in items})
    path = write_dataset(tmp_path / "shop", rows, [(name, name, "c") for name in names])
    return DATASET_SETTINGS | {"data_path": str(path), "topk": [1], "valid_metric": "NDCG@1"}


def test_short_histories_never_leak_an_unseen_item(tmp_path: Path) -> None:
    """RecBole trains on the second of two interactions, and on nothing of one."""
    histories = {f"long{n}": ["a", "b", "c", "d", f"t{n}"] for n in range(3)} | {
        "two": ["a", "t0"],
        "becomes_two": ["t1", "a", "t0"],
        "becomes_one": ["t0", "t1", "t0"],
        "had_it_before": ["a", "t0", "b", "t0"],
    }
    settings = shop(tmp_path, histories)
    chosen = set()
    for seed in range(12):
        dataset = load("SASRec", "shop", **settings, cold_start=0.5, seed=seed)
        unseen = names_of(dataset)
        train, valid, test = splits(dataset)
        for _, history, target in [*train, *valid]:
            assert not unseen & {*history, target}
        expected = {
            user: tuple(item for item in items[:-1] if item not in unseen)
            for user, items in histories.items()
        }
        # Of three interactions RecBole makes two rows, a training and a test row.
        assert {user: history for user, history, _ in test} == {
            user: history for user, history in expected.items() if len(history) >= 2
        }
        assert all(target == histories[user][-1] for user, _, target in test)
        if "t0" not in unseen:  # a short user with nothing unseen is as RecBole has it
            assert ("two", ("a",), "t0") in train
            assert (("becomes_two", ("a",), "t0") in train) == ("t1" in unseen)
        chosen.add(frozenset(unseen))
    assert chosen == {frozenset(f"t{n}" for n in range(3) if n != out) for out in range(3)}


def test_data_in_which_no_unseen_item_can_be_tested_are_refused(tmp_path: Path) -> None:
    settings = shop(tmp_path, {f"u{n}": ["a", "b", "c", "t"] for n in range(3)})
    with pytest.raises(DataError, match="3 of 3 test interactions are with unseen items") as error:
        load("SASRec", "shop", **settings, cold_start=0.5)
    assert "\n" not in str(error.value)


def test_the_last_of_interactions_within_a_minute_is_held_out(tmp_path: Path) -> None:
    """RecBole's float32 timestamps cannot tell them apart."""
    end = 1_000_000_000
    before = [("a", -9000.0), ("b", -8000.0), ("c", -7000.0)]
    rows = [
        (f"u{n}", item, end + when) for n in range(4) for item, when in [(f"t{n}", 9.0), *before]
    ]
    rows += [(f"u{n}", "x", end + 0.0) for n in range(4)]
    names = sorted({item for _, item, _ in rows})
    path = write_dataset(tmp_path / "shop", rows, [(name, name, "c") for name in names])
    settings = DATASET_SETTINGS | {"data_path": str(path), "topk": [1], "valid_metric": "NDCG@1"}
    dataset = load("SASRec", "shop", **settings, cold_start=0.5)
    assert len(names_of(dataset)) == 2 and names_of(dataset) < {"t0", "t1", "t2", "t3"}
