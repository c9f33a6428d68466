"""Tables and result files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.report.__main__ import main
from recbole_idiomoe.report.extra_rows import language_notes
from recbole_idiomoe.report.formatting import aligned
from recbole_idiomoe.report.result_files import check_writable, merge_grids, write_result
from recbole_idiomoe.report.tables import grid_markdown, table

METRICS = ["hit@5", "hit@10", "hit@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@5", "mrr@10"]
PROTOCOL = {"split": "LS valid_and_test", "mask_seen": True, "filters": {"rm_dup_inter": None}}

RESULTS = Path(__file__).parents[2] / "results"


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


def test_tables_say_what_was_trained_of_a_language_model() -> None:
    whole, frozen = {"trained": "trained whole"}, {"trained": "backbone frozen"}
    runs = [result("IDIOMoE", **whole), result("MoT", **frozen), result("SASRec")]
    said = "Language models, trained whole: IDIOMoE; backbone frozen: MoT."
    assert said in " ".join(table(runs).split())
    assert "Language models" not in table([result("SASRec")])


def test_folders_are_named_whole_for_whoever_goes_on_with_them() -> None:
    folder = f"somewhere/that-is-{'far-' * 20}away/IDIOMoE-ml-100k-Nov-22-2026_20-13-13-9579"
    lines = table([result("IDIOMoE", folder=folder), result("SASRec", folder="saved/x")])
    assert folder in " ".join(lines.split()).split() and lines.endswith("\nKept in saved/x")


def test_long_titles_stand_in_several_lines_where_a_terminal_has_no_room() -> None:
    narrow = [["run", "untouched nll"], ["A", "1.5"]]
    assert aligned(narrow) == ["run  untouched nll", "-" * 18, "A              1.5"]
    lines = aligned(
        [["run", "n", *["of what was measured"] * 6], ["IDIOMoE", "1", *["0.12345"] * 6]]
    )
    assert [line.split() for line in lines[:4]] == [
        ["of"] * 6, ["what"] * 6, ["was"] * 6, ["run", "n", *["measured"] * 6],
    ]  # fmt: skip
    assert set(lines[4]) == {"-"} and lines[5].split()[0] == "IDIOMoE"
    assert len({len(line) for line in lines[3:]}) == 1 and len(lines[4]) <= 80


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


def grid(**rows: list[float]) -> dict[str, Any]:
    """A grid on one data set with NDCG@10 as given, one value a seed, and twice that as HR@10."""
    return {
        "baseline": next(iter(rows)),
        "protocol": {"toys": PROTOCOL | {"valid_metric": "NDCG@10"}},
        "runs": [
            {
                "variant": name,
                "dataset": "toys",
                "seed": seed,
                "valid": {"ndcg@10": value + 0.1, "hit@10": 0.9},
                "test": {"hit@10": 2 * value, "ndcg@10": value, "mrr@10": 0.9},
                "parameters": {"total": 2_500_000},
            }
            for name, values in rows.items()
            for seed, value in enumerate(values)
        ],
    }


def test_a_grid_shows_means_deviations_and_differences_from_its_baseline() -> None:
    lines = table([grid(base=[0.1, 0.3], better=[0.3, 0.3], worse=[0.04, 0.06])]).splitlines()
    assert lines[0].split() == ["toys", "NDCG@10", "Δ", "HR@10", "Δ", "params"]
    # The sample's standard deviation of 0.1 and 0.3 is 0.2 / sqrt(2).
    assert " ".join(lines[2].split()) == "base 0.2000 ± 0.1414 - 0.4000 ± 0.2828 - 2.5M"
    assert " ".join(lines[3].split()) == "better 0.3000 ± 0.0000 +50.0% 0.6000 ± 0.0000 +50.0% 2.5M"
    assert " ".join(lines[4].split()) == "worse 0.0500 ± 0.0141 -75.0% 0.1000 ± 0.0283 -75.0% 2.5M"
    assert "over 2 seeds. Δ: difference from base." in lines[6]
    assert lines[7].startswith("Protocol: split LS valid_and_test; mask seen True")


def test_a_grid_of_a_cold_start_has_a_second_table_for_unseen_items() -> None:
    one = grid(base=[0.2, 0.4], better=[0.3, 0.5], blind=[0.1, 0.1])
    for run in one["runs"]:
        found = {metric: value / 10 for metric, value in run["test"].items()}
        run["cold_start"] = {"unseen": None if run["variant"] == "blind" else found}
    lines = [" ".join(line.split()) for line in table([one]).splitlines()]
    assert "base 0.3000 ± 0.1414 - 0.6000 ± 0.2828 - 2.5M" in lines
    start = lines.index("unseen items NDCG@10 Δ HR@10 Δ params")
    assert lines[start + 2] == "base 0.0300 ± 0.0141 - 0.0600 ± 0.0283 - 2.5M"
    assert lines[start + 3] == "better 0.0400 ± 0.0141 +33.3% 0.0800 ± 0.0283 +33.3% 2.5M"
    assert "that cannot rank them: blind." in " ".join(lines[start:])
    assert "| unseen items | NDCG@10 |" in grid_markdown(one)
    assert "unseen" not in grid_markdown(grid(base=[0.2]))


def test_one_seed_has_no_deviation_and_a_baseline_of_nothing_no_difference() -> None:
    lines = table([grid(base=[0.0], other=[0.25])]).splitlines()
    assert lines[2].split() == ["base", "0.0000", "-", "0.0000", "-", "2.5M"]
    assert lines[3].split() == ["other", "0.2500", "-", "0.5000", "-", "2.5M"]
    assert lines[5] == "One seed. Δ: difference from base."


def test_a_row_that_draws_nothing_by_chance_has_no_spread() -> None:
    one = grid(base=[0.1, 0.3], counted=[0.2, 0.2], alike=[0.2, 0.2])
    for run in one["runs"]:
        run["parameters"]["total"] *= run["variant"] != "counted"
    lines = [" ".join(line.split()) for line in table([one]).splitlines()]
    assert lines[3] == "counted 0.2000 +0.0% 0.4000 +0.0% 0"
    assert lines[4] == "alike 0.2000 ± 0.0000 +0.0% 0.4000 ± 0.0000 +0.0% 2.5M"
    said = " ".join(lines[6:])
    assert "over 2 seeds. The same with any seed, as nothing is drawn by chance: counted." in said
    one["runs"][3]["test"]["ndcg@10"] = 0.4  # such as of data that a cold start's seed has drawn
    assert "counted 0.3000 ± 0.1414" in " ".join(table([one]).split())


def test_a_grid_with_other_metrics_shows_those_that_there_are() -> None:
    one = grid(base=[0.5])
    one["runs"][0]["test"] = {"mrr@5": 0.125, "hit@5": 0.25, "ndcg@5": 0.5}
    lines = table([one]).splitlines()
    assert lines[0].split() == ["toys", "MRR@5", "Δ", "HR@5", "Δ", "params"]


def test_long_names_of_rows_are_folded_to_80_columns() -> None:
    text = table([grid(**{"a very long name " * 3: [0.1, 0.2], "short": [0.1, 0.3]})])
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("name") == 2 * 3  # In the table, and under it as the baseline.


def test_rows_that_were_not_validated_say_so_in_markdown() -> None:
    unvalidated = grid(base=[0.1, 0.3], other=[0.3])
    for run in unvalidated["runs"][:2]:
        run["valid"] = {}
    lines = grid_markdown(unvalidated).splitlines()
    assert lines[2].startswith("| base |") and lines[2].endswith("| - |")
    assert not lines[3].endswith("| - |")


def test_a_grid_in_markdown_has_the_validation_metric_too() -> None:
    lines = grid_markdown(grid(base=[0.1, 0.3], other=[0.3, 0.3])).splitlines()
    assert lines[:4] == [
        "| toys | NDCG@10 | Δ | HR@10 | Δ | params | validation NDCG@10 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| base | 0.2000 ± 0.1414 | - | 0.4000 ± 0.2828 | - | 2.5M | 0.3000 ± 0.1414 |",
        "| other | 0.3000 ± 0.0000 | +50.0% | 0.6000 ± 0.0000 | +50.0% | 2.5M | 0.4000 ± 0.0000 |",
    ]


def test_grids_that_ran_in_different_places_are_joined_under_one_protocol() -> None:
    one, other = grid(base=[0.1]), grid(more=[0.2])
    assert "| more | 0.2000 | +100.0% |" in grid_markdown(merge_grids([one, other]))
    with pytest.raises(IdiomoeError, match="'base' on toys"):
        merge_grids([one, grid(base=[0.2])])
    other["protocol"]["toys"] = PROTOCOL | {"mask_seen": False}
    with pytest.raises(IdiomoeError, match="do not compare"):
        merge_grids([one, other])


def test_the_measured_tables_are_those_of_their_files() -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    for names in (["backbone-amazon-toys"], ["backbone-ml-100k-SASRec", "backbone-ml-100k"]):
        grids = [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]
        assert grid_markdown(merge_grids(grids)).split("\n\n")[0] + "\n\n" in text


@pytest.mark.parametrize(
    "path", sorted((RESULTS / "ablations").glob("*.json")), ids=lambda path: path.stem
)
def test_the_measured_ablations_are_those_of_their_files(path: Path) -> None:
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    grid = json.loads(path.read_text(encoding="utf-8"))
    tables = [block for block in grid_markdown(grid).split("\n\n") if block.startswith("|")]
    assert tables and all(table + "\n\n" in text for table in tables)


def test_the_report_command_prints_files_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.json"
    write_result(path, [grid(base=[0.1], other=[0.2])])
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == grid_markdown(grid(base=[0.1], other=[0.2])) + "\n"
    (tmp_path / "one.json").write_text(json.dumps(result("SASRec")))
    (tmp_path / "broken.json").write_text("{")
    for name in ("none.json", "broken.json", "one.json"):
        assert main([str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and name in err and err.count("\n") == 1
    assert main([]) == 2


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
    assert "a model that cannot rank them: SASRec, GRU4Rec." in " ".join(text.split())
    assert "cold start unseen_test_items=0.05, epsilon=0.1" in " ".join(text.split())
    assert "unseen" not in table([result("SASRec")])
    assert "cannot rank" not in table([cold("AppendBlocks", found)])


MIX = {"with": "TransitionCounter", "weight": 0.35}


def test_a_mix_stands_under_its_run_within_80_columns() -> None:
    found = {name: 0.2345 for name in METRICS}
    mix = MIX | {"test_result": found, "best_valid_result": {}, "eval_seconds": 1.0}
    text = table([result("IDIOMoE", mix=mix), result("SASRec")])
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()[2:5]]
    assert rows[0][:2] == ["IDIOMoE", "0.1235"]
    assert rows[1][:4] == ["IDIOMoE", "+", "TransitionCounter", "0.2345"]
    assert rows[2][:2] == ["SASRec", "0.1235"]
    assert "on validation: IDIOMoE 0.35." in " ".join(text.split())
    assert "TransitionCounter" not in table([result("SASRec")])


def test_a_grid_has_the_mixes_means_and_weights_by_seed() -> None:
    one = grid(base=[0.1, 0.3], other=[0.3, 0.3])
    for run in one["runs"]:
        better = {name: value + 0.1 for name, value in run["test"].items()}
        weight = 0.1 * (run["seed"] + 1)
        run["mix"] = MIX | {"weight": weight, "valid": run["valid"], "test": better}
    lines = [" ".join(line.split()) for line in table([one]).splitlines()]
    assert "base + 0.3000 ± 0.1414 +50.0% 0.5000 ± 0.2828 +25.0% 2.5M" in lines
    assert "on validation: base 0.1, 0.2; other 0.1, 0.2." in " ".join(lines)
    text = grid_markdown(merge_grids([one]))
    assert "| other + TransitionCounter | 0.4000 ± 0.0000 | +100.0% |" in text
    assert "- validation" not in text


def test_language_kept_is_said_by_text_and_tokenizer() -> None:
    def kept(change: float, tokenizer: str = "bundled") -> dict[str, Any]:
        about = {"file": "wiki.txt", "tokenizer": tokenizer, "tokens": 9000, "context": 512}
        return about | {"nll": 4.0 + change, "untouched_nll": 4.0, "nll_change": change}

    runs = [
        result("IDIOMoE", language=kept(0.25)),
        result("MoT", language=kept(0.0)),
        result("ItemLLM", language=kept(-0.5, "Qwen/Qwen2.5-0.5B")),
        result("SASRec"),
    ]
    said = " ".join(table(runs).split())
    assert "windows of 512 that overlap by half): IDIOMoE +0.2500; MoT 0." in said
    assert "of Qwen/Qwen2.5-0.5B's tokenizer" in said and "ItemLLM -0.5000." in said
    short = language_notes(runs, values=False)
    assert [note.partition(":")[0] for note in short] == ["ΔNLL of IDIOMoE, MoT", "ΔNLL of ItemLLM"]
    assert language_notes(runs[:2], values=False)[0].startswith("ΔNLL: nats a token on wiki.txt")
