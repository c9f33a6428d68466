"""A rule that can be learnt is learnt, and what was switched off plays no part."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe import api
from tests.training.cycle import TINY, titles_of, write_cycle
from tests.words import few_words

# Their loss is over the vocabulary too.
LEARN_WORDS = {"text_loss_weight", "softmax"}


def run(path: Path, **settings: Any) -> dict[str, Any]:
    (result,) = api.run(
        "IDIOMoE", path.name, settings=TINY | settings | {"data_path": str(path.parent)}
    )
    return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "segment_order": "ID text",
            "text_loss_weight": 0.1,
            "dropout": 0.1,
            "max_item_text_tokens": 4,
        },
        {"use_text": False, "item_init": "random"},
        {"freeze": "backbone", "softmax": "hybrid", "item_embedding_dim": 16, "epochs": 24},
    ],
    ids=["default", "ID text", "items alone", "frozen"],
)
def test_the_next_item_is_learnt(options: dict[str, Any], tmp_path: Path) -> None:
    write_cycle(tmp_path / "cycle", users=120)
    with few_words(tmp_path) if LEARN_WORDS & options.keys() else nullcontext():
        result = run(tmp_path / "cycle", **{"epochs": 16, "eval_step": 4} | options)
    assert result["test_result"]["hit@1"] > 0.95
    assert result["best_valid_result"]["ndcg@10"] > 0.95


def test_the_order_of_the_history_is_learnt(tmp_path: Path) -> None:
    """Users walk either way: only the last two items together tell which comes next."""
    write_cycle(tmp_path / "ways", items=20, users=200, both_ways=True)
    options = {"epochs": 25, "eval_step": 25, "mask_seen": False, "max_item_text_tokens": 2}
    result = run(tmp_path / "ways", **options)
    assert result["test_result"]["hit@1"] > 0.95


def test_nothing_is_known_without_training(tmp_path: Path) -> None:
    write_cycle(tmp_path / "cycle", users=120)
    result = run(tmp_path / "cycle", epochs=1, learning_rate=1e-12)
    assert result["test_result"]["hit@1"] < 0.2


def test_without_text_shuffled_titles_change_no_metric(tmp_path: Path) -> None:
    titles = titles_of(40)
    shuffled = np.random.default_rng(1).permutation(titles).tolist()
    write_cycle(tmp_path / "right", both_ways=True, titles=titles)
    write_cycle(tmp_path / "wrong", both_ways=True, titles=shuffled)

    def metrics(**options: Any) -> list[Any]:
        settings = {"epochs": 2, "learning_rate": 0.002, "item_init": "random", **options}
        results = [run(tmp_path / name, **settings) for name in ("right", "wrong")]
        return [(r["best_valid_result"], r["test_result"]) for r in results]

    right, wrong = metrics(use_text=False)
    assert right == wrong
    right, wrong = metrics(use_text=True)
    assert right != wrong
