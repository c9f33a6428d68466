"""Popularity and TransitionCounter against counting by hand, and their way through a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api, load
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model
from tests.helpers import DATASET_SETTINGS, write_dataset

USERS, ITEMS = 25, 12
OTHER_WEIGHTS = {
    "transition_steps": 3,
    "step_decay": 0.4,
    "reverse_weight": 0.2,
    "popularity_damping": 0.7,
}


def histories() -> list[list[int]]:
    """Of three to nine items each, repeats among them."""
    rng = np.random.default_rng(3)
    return [rng.integers(ITEMS, size=3 + user % 7).tolist() for user in range(USERS)]


def write(folder: Path, taken: list[list[int]]) -> dict[str, Any]:
    rows = [
        (f"u{user}", f"i{item}", float(step))
        for user, items in enumerate(taken)
        for step, item in enumerate(items)
    ]
    path = write_dataset(folder, rows, [(f"i{n}", f"title {n}", "a") for n in range(ITEMS)])
    return DATASET_SETTINGS | {"data_path": str(path), "topk": [5, 10], "valid_metric": "NDCG@10"}


def build(name: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """The model, and the whole test split in one batch."""
    config = RunConfig(name, "shop", settings=settings)
    train, _, test = load_dataset(config).build()
    return get_model(name)(config, train), test[np.arange(len(test))]


def trained_on(items: list[int]) -> list[int]:
    return items[: max(2, len(items) - 2)]


def by_hand(taken: list[list[int]], options: dict[str, Any]) -> np.ndarray:
    """Every user's scores before the last item, from the definition."""
    decay, steps = options["step_decay"], options["transition_steps"]
    counts, popularity = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
    for items in map(trained_on, taken):
        for later, item in enumerate(items):
            popularity[item] += 1
            for earlier in range(max(0, later - steps), later):
                weight = decay ** (later - earlier - 1)
                counts[items[earlier], item] += weight
                counts[item, items[earlier]] += options["reverse_weight"] * weight
    scores = np.zeros((USERS, ITEMS))
    for user, items in enumerate(taken):
        for age, item in enumerate(reversed(items[:-1][-steps:])):
            for other in range(ITEMS):
                pair = max(popularity[item], 1) * max(popularity[other], 1)
                damped = counts[item, other] / pair ** options["popularity_damping"]
                scores[user, other] += decay**age * damped
    return scores


@pytest.mark.parametrize("given", [{}, OTHER_WEIGHTS], ids=["defaults", "other weights"])
def test_transitions_are_counted_as_defined(given: dict[str, Any], tmp_path: Path) -> None:
    taken = histories()
    settings = write(tmp_path / "shop", taken) | given
    model, rows = build("TransitionCounter", settings)
    config = RunConfig("TransitionCounter", "shop", settings=settings)
    wanted = by_hand(taken, {name: config[name] for name in OTHER_WEIGHTS})
    train = load_dataset(config).build()[0]
    column = [train.token2id("item_id", f"i{n}") for n in range(ITEMS)]
    users = [int(u[1:]) for u in train.id2token("user_id", rows["user_id"].numpy())]
    found = model.full_sort_predict(rows)
    np.testing.assert_allclose(found.numpy()[:, column], wanted[users], rtol=1e-5)
    own = torch.from_numpy(wanted[users, [column.index(i) for i in rows["item_id"].tolist()]])
    torch.testing.assert_close(model.predict(rows), own.float())


@pytest.mark.parametrize("name", ["Popularity", "TransitionCounter"])
def test_held_out_items_are_never_counted(name: str, tmp_path: Path) -> None:
    """Two data sets that differ in last and last but one items alone count the same."""
    every = list(range(ITEMS))  # first, so that RecBole numbers the items alike
    taken = [[*every, 0, 1], *(items for items in histories() if len(items) > 3)]
    rng = np.random.default_rng(9)
    others = [[*trained_on(items), *rng.integers(ITEMS, size=2).tolist()] for items in taken]
    assert taken != others
    one, _ = build(name, write(tmp_path / "a" / "shop", taken))
    other, _ = build(name, write(tmp_path / "b" / "shop", others))
    for buffer, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[buffer]), buffer


def test_popular_items_come_first_for_everyone(tmp_path: Path) -> None:
    taken = histories()
    model, rows = build("Popularity", write(tmp_path / "shop", taken))
    counts = np.bincount([i for items in taken for i in trained_on(items)], minlength=ITEMS)
    scores = model.full_sort_predict(rows)
    assert scores.shape == (len(rows), ITEMS + 1)
    assert (scores == scores[0]).all() and scores[0, 0] == 0
    assert sorted(scores[0, 1:].tolist()) == sorted(counts.tolist())


@pytest.mark.parametrize("name", ["Popularity", "TransitionCounter"])
def test_a_run_has_metrics_and_no_epochs(name: str, tmp_path: Path) -> None:
    settings = write(tmp_path / "shop", histories()) | {"mask_seen": False}
    (result,) = api.run(name, "shop", settings=settings)
    assert result["epochs"] == 0
    assert result["parameters"] == {"total": 0, "trainable": 0}
    assert result["test_result"]["hit@10"] > 0
    model, rows = build(name, settings)
    best = model.full_sort_predict(rows)[:, 1:].topk(5).values
    recommender = load(result["folder"])
    names = recommender.catalog.item_ids
    asked = [
        [names[i] for i in row[:length]]
        for row, length in zip(rows["item_id_list"], rows["item_length"], strict=True)
    ]
    for found, wanted in zip(
        recommender.recommend(asked, k=5, exclude_seen=False), best.tolist(), strict=True
    ):
        assert [item.score for item in found] == pytest.approx(wanted)
    (again,) = api.run(
        resume=result["folder"], settings={"data_path": result["settings"]["data_path"]}
    )
    assert again["test_result"] == result["test_result"]


@pytest.mark.parametrize("name", [*OTHER_WEIGHTS])
def test_weights_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match=name):
        RunConfig("TransitionCounter", "ml-100k", settings={name: -1})


def test_a_plain_counters_figures_are_reached() -> None:
    """What one with plainer weights reached on ml-100k."""
    (result,) = api.run("TransitionCounter", "ml-100k")
    assert result["test_result"]["hit@10"] >= 0.194
    assert result["test_result"]["ndcg@10"] >= 0.105
