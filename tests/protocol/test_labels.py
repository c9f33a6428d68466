"""Labelled pairs are evaluated with the labels that the files, or a threshold, give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import DataError
from tests.helpers import SMALL_ML_100K
from tests.training.cycle import TINY

COMMON: dict[str, Any] = {
    "metrics": ["AUC", "LogLoss"],
    "valid_metric": "AUC",
    "mask_seen": False,
    "epochs": 1,
    "eval_args": {"mode": "labeled"},
}


def write(folder: Path, labels: list[float]) -> str:
    """Four users of six rows, whose last two have the ``labels``."""
    rows = [
        f"u{user}\ti{(3 * user + step) % 7}\t{step}\t{(1, 5)[step % 2] if step < 4 else label}"
        for user in range(4)
        for step, label in enumerate([0, 0, 0, 0, labels[user], labels[user]])
    ]
    folder.mkdir(parents=True)
    header = "user_id:token\titem_id:token\ttimestamp:float\trating:float"
    (folder / f"{folder.name}.inter").write_text("\n".join([header, *rows]) + "\n")
    return str(folder.parent)


def run(model: str, data: str, **settings: Any) -> dict[str, float]:
    columns = {"inter": ["user_id", "item_id", "timestamp", "rating"]}
    sizes = {"hidden_size": 16, "inner_size": 16} if model == "SASRec" else {}
    given = TINY | sizes | COMMON | {"data_path": data, "load_col": columns}
    given |= {"item_text_fields": None, "topk": [1, 5]} | settings
    [result] = api.run(model, "rated", settings=given)
    found: dict[str, float] = result["test_result"]
    return found


@pytest.mark.parametrize("model", ["SASRec", "SASRecCE", "Popularity", "IDIOMoE"])
def test_labels_are_made_by_a_threshold(model: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rated", [1, 5, 4, 2])
    found = run(model, data, threshold={"rating": 3})
    assert 0 <= found["auc"] <= 1 and np.isfinite(found["logloss"])


def test_a_column_of_labels_needs_no_threshold(tmp_path: Path) -> None:
    data = write(tmp_path / "rated", [1, 0, 1, 0])
    assert 0 <= run("SASRec", data, LABEL_FIELD="rating")["auc"] <= 1
    data = write(tmp_path / "other" / "rated", [1, 5, 4, 2])
    with pytest.raises(DataError, match="labels of 0 and 1"):
        run("SASRec", data, LABEL_FIELD="rating")


def test_one_label_alone_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "rated", [5, 5, 4, 4])
    with pytest.raises(DataError, match="all labels of the valid split are 1"):
        run("SASRec", data, threshold={"rating": 3})


def test_a_column_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "rated", [1, 5, 4, 2])
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    with pytest.raises(DataError, match="leaves it out"):
        run("SASRec", data, load_col=columns, threshold={"rating": 3})


def test_drawn_candidates_are_labels_too() -> None:
    settings = SMALL_ML_100K | COMMON | {"eval_args": {"mode": "uni5"}, "epochs": 1}
    [result] = api.run("Popularity", "ml-100k", settings=settings)
    assert result["test_result"]["auc"] > 0.5
