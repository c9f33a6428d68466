"""Memory of an evaluation does not grow with users times items, and no list is another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.evaluator.collector import Collector

from benchmarks.measuring import LargestTensor
from recbole_idiomoe import api
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol import loader
from recbole_idiomoe.protocol.splits import split_dataset
from recbole_idiomoe.training.trainers import get_trainer
from tests.training.cycle import TINY, write_cycle

ITEMS, USERS = 40, 60
MODELS: dict[str, dict[str, Any]] = {
    "IDIOMoE": {},
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 2},
}
Lists = list[tuple[int, torch.Tensor]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Lists]]:
    """A whole run with so many scores held at once: its result, and every list that it ranked."""
    monkeypatch.chdir(tmp_path)
    path = write_cycle(tmp_path / "data" / "cycle", ITEMS, USERS)
    ranked: Lists = []
    collect = Collector.eval_batch_collect

    def watched(self: Collector, scores: torch.Tensor, *rest: Any) -> None:
        ranked.extend((len(scores), best) for best in scores.topk(10).indices)
        collect(self, scores, *rest)

    monkeypatch.setattr(Collector, "eval_batch_collect", watched)

    def run(model: str, scores: int, **options: Any) -> tuple[Any, Lists]:
        ranked.clear()
        monkeypatch.setattr(loader, "MAX_SCORES", scores)
        settings = TINY | MODELS[model] | {"data_path": str(path), "epochs": 1} | options
        (result,) = api.run(model, "cycle", settings=settings)
        return result, list(ranked)

    return run


@pytest.mark.parametrize(
    "options",
    [
        {"metrics": ["Hit", "NDCG", "MRR", "GAUC", "ShannonEntropy"]},
        {"cold_start": 0.2},
        {"mask_seen": False, "eval_args": {"mode": "pop20"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", MODELS)
def test_fewer_users_at_once_have_the_same_lists_and_metrics(
    model: str, options: dict[str, Any], run: Callable[..., tuple[Any, Lists]]
) -> None:
    options["metric_decimal_place"] = 12
    plain, whole = run(model, 2**26, **options)
    bounded, parts = run(model, 7 * (ITEMS + 1), **options)
    assert max(users for users, _ in whole) > 40 and max(users for users, _ in parts) == 7
    assert torch.equal(torch.stack([b for _, b in whole]), torch.stack([b for _, b in parts]))
    for key in ("test_result", "best_valid_result", "cold_start"):
        assert bounded.get(key) == plain.get(key)


def test_one_user_is_always_ranked_and_smaller_batches_stay() -> None:
    assert loader.users_at_once(2**30) == 1
    assert loader.users_at_once(1000) == 67_108
    config = RunConfig("SASRec", "ml-100k", settings={"gpu_id": "", "eval_batch_size": 30})
    test = split_dataset(config, load_dataset(config)).test
    assert test.step == 30
    assert len(test) == 32


@pytest.mark.parametrize("model", MODELS)
def test_the_largest_tensor_does_not_grow_with_the_catalogue(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = loader.MAX_SCORES

    def largest(items: int, bounded: bool) -> int:
        path = write_cycle(tmp_path / f"{items}-{bounded}" / "cycle", items, USERS, length=items)
        settings = TINY | MODELS[model] | {"data_path": str(path), "MAX_ITEM_LIST_LENGTH": 2}
        settings |= {"max_batch_tokens": 64} if model == "IDIOMoE" else {}
        config = RunConfig(model, "cycle", settings=settings)
        monkeypatch.setattr(loader, "MAX_SCORES", 8000 if bounded else rows)
        splits = split_dataset(config, load_dataset(config))
        assert splits.dataset.item_num == items + 1
        trainer = get_trainer(model)(config, get_model(model)(config, splits.train._dataset))
        with LargestTensor() as found:
            trainer.evaluate(splits.test, load_best_model=False)
        return found.bytes

    sizes = (200, 400, 800)
    # Items are ranked by whole numbers of eight bytes.
    assert all(largest(items, bounded=True) <= 8 * 8000 for items in sizes)
    assert all(largest(items, bounded=False) >= 4 * USERS * items for items in sizes)
