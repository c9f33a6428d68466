"""Tables and result files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe.errors import IdiomoeError
from recbole_idiomoe.report import check_writable, table, write_result

METRICS = ["hit@5", "hit@10", "hit@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@5", "mrr@10"]
PROTOCOL = {"split": "LS valid_and_test", "mask_seen": True, "filters": {"rm_dup_inter": None}}


def result(model: str, dataset: str = "ml-100k", **changes: Any) -> dict[str, Any]:
    return {
        "model": model,
        "dataset": dataset,
        "protocol": PROTOCOL,
        "test_result": {name: 0.12345 for name in METRICS},
        "best_valid_result": {},
        "epochs": 3,
        "train_seconds": 12.34,
        "eval_seconds": 1.0,
        "parameters": {"total": 1_234_567, "trainable": 1_000_000},
        **changes,
    }


def test_wide_results_show_the_metrics_at_ten_within_80_columns() -> None:
    text = table([result("IDIOMoE"), result("SASRec")])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "NDCG@10" in text and "Hit@10" in text and "NDCG@5" not in text


def test_few_metrics_are_all_shown() -> None:
    text = table([result("SASRec", test_result={"hit@5": 0.5, "ndcg@5": 0.25})])
    assert text.splitlines()[0].split() == [
        "ml-100k", "Hit@5", "NDCG@5", "epochs", "train", "params",
    ]  # fmt: skip
    assert text.splitlines()[2].split() == ["SASRec", "0.5000", "0.2500", "3", "12.3s", "1.2M"]


def test_models_are_grouped_by_dataset_in_the_order_of_the_runs() -> None:
    text = table([result("B", "y"), result("A", "x"), result("A", "y")])
    first_words = [line.split()[0] for line in text.splitlines() if line and line[0] != "-"]
    assert first_words[:5] == ["y", "B", "A", "x", "A"]


def test_the_protocol_is_printed_once_and_a_difference_is_said() -> None:
    same = table([result("A"), result("B")])
    assert same.count("Protocol:") == 1
    assert "split LS valid_and_test" in same and "mask seen True" in same
    assert "filters" not in same
    other = table([result("A"), result("B", protocol={**PROTOCOL, "mask_seen": False})])
    assert "do not compare" in other and other.count("Protocol:") == 2


def test_a_metric_that_one_model_lacks_is_a_dash() -> None:
    text = table([result("A", test_result={"hit@5": 0.5}), result("B", test_result={"mrr@5": 0.1})])
    assert text.splitlines()[2].split()[1:3] == ["0.5000", "-"]


def test_one_run_is_an_object_and_several_are_a_list(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_result(path, [result("A")])
    assert json.loads(path.read_text())["model"] == "A"
    write_result(path, [result("A"), result("B")])
    assert [r["model"] for r in json.loads(path.read_text())] == ["A", "B"]
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_a_failed_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, [result("A")])
    with pytest.raises(TypeError):
        write_result(path, [{"model": object()}])
    assert json.loads(path.read_text())["model"] == "A"


def test_a_path_that_cannot_be_written_is_one_line_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "result.json"):
        with pytest.raises(IdiomoeError) as caught:
            check_writable(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(IdiomoeError, match="cannot be written"):
        check_writable(tmp_path / "result.json")


def test_a_path_that_can_be_written_is_not_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_a_cold_start_has_a_table_of_its_own_within_80_columns() -> None:
    def cold(model: str, unseen: dict[str, float] | None) -> dict[str, Any]:
        part = {"share": 0.05, "epsilon": 0.1, "items": 374, "unseen_targets": 934}
        protocol = PROTOCOL | {"cold_start": {"unseen_test_items": 0.05, "epsilon": 0.1}}
        return result(model, protocol=protocol, cold_start=part | {"seen": {}, "unseen": unseen})

    found = {name: 0.0321 for name in METRICS}
    text = table([cold("AppendBlocks", found), cold("SASRec", None), cold("GRU4Rec", None)])
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    start = next(n for n, line in enumerate(lines) if line.startswith("unseen items"))
    assert lines[start].split() == [
        "unseen",
        "items",
        "Hit@10",
        "NDCG@10",
        "MRR@10",
        "items",
        "targets",
    ]
    assert lines[start + 2].split() == ["AppendBlocks", *["0.0321"] * 3, "374", "934"]
    assert lines[start + 3].split() == ["SASRec", *["cannot"] * 3, "374", "934"]
    assert "a model that cannot rank them: SASRec, GRU4Rec." in " ".join(lines)
    assert "cold start unseen_test_items=0.05, epsilon=0.1" in " ".join(" ".join(lines).split())
    assert "unseen" not in table([result("SASRec")])
    assert "cannot rank" not in table([cold("AppendBlocks", found)])
