"""Every baseline through the whole of a run, as RecBole's own models go through it."""

from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe import api, load
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.models.registry import BASELINES
from tests.models.tiny_baselines import SMALL
from tests.training.cycle import TINY, write_cycle

# Nobody has more than five inputs to train on: what is learnt of later places would be nothing.
LEARNING = {
    "MAX_ITEM_LIST_LENGTH": 5,
    "epochs": 30,
    "stopping_step": 30,
    "train_batch_size": 16,
    "n_layers": 1,
}


# One target a row, and no bias says which tokens are the last: it has less to learn from.
LEARNING_CODES = LEARNING | {
    "hidden_size": 32,
    "history_items": 2,
    "user_tokens": 0,
    "learning_rate": 0.005,
    "eval_step": 10,
    "epochs": 60,
    "stopping_step": 60,
}


@pytest.fixture(scope="module")
def cycle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle")


def run(name: str, cycle: Path, **options: Any) -> dict[str, Any]:
    settings = TINY | SMALL[name] | {"epochs": 2, "data_path": str(cycle)} | options
    (result,) = api.run(name, "cycle", settings=settings)
    return result


def test_every_baseline_is_tested_here() -> None:
    assert list(SMALL) == list(BASELINES)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "Popularity"])
def test_what_comes_next_is_learnt(name: str, cycle: Path) -> None:
    longer = LEARNING | {"epochs": 45, "stopping_step": 45}
    own = {"TransitionCounter": {}, "TIGER": LEARNING_CODES, "HSTU": longer}
    learning = own.get(name, LEARNING)
    result = run(name, cycle, **learning)
    assert result["test_result"]["hit@1"] > 0.95
    assert result["best_valid_result"]["ndcg@10"] > 0.95


@pytest.mark.parametrize("name", BASELINES)
def test_a_seed_repeats_a_run(name: str, cycle: Path) -> None:
    one, same = (run(name, cycle, seed=7) for _ in range(2))
    assert one["test_result"] == same["test_result"]
    assert one["best_valid_result"] == same["best_valid_result"]
    assert one["folder"] != same["folder"]
    if one["epochs"]:
        assert run(name, cycle, seed=8)["test_result"] != one["test_result"]


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "TIGER"])
def test_new_items_are_none_of_its_candidates(name: str, cycle: Path) -> None:
    result = run(name, cycle, epochs=1, cold_start=0.2)
    assert result["cold_start"]["unseen_targets"] > 0
    assert result["cold_start"]["unseen"] is None
    recommender = load(result["folder"])
    assert not recommender.ranks_unseen_items
    with pytest.raises(SettingError, match=f"{name} cannot rank items"):
        recommender.add_items([{"item_id": "new", "title": "new", "category": "toys"}])


@pytest.mark.filterwarnings("ignore:HSTU. the history has no times")
@pytest.mark.parametrize("name", BASELINES)
def test_a_saved_one_recommends(name: str, cycle: Path) -> None:
    recommender = load(run(name, cycle, epochs=1)["folder"])
    history = [f"i{n}" for n in range(5, 9)]
    found = recommender.recommend(history, k=36)
    assert len({item.item_id for item in found}) == 36
    assert not {item.item_id for item in found} & set(history)
    session = recommender.session(history[:-1])
    session.add(history[-1])
    assert session.recommend(k=36) == found
