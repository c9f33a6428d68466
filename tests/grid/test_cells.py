"""Grids: what they run, under which settings, and what they refuse."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.grid.cells import Cell, Grid, cells_of, grid_result, read_grid
from recbole_idiomoe.report.tables import table
from tests.helpers import write_dataset

RESULTS = Path(__file__).parents[2] / "results"
ABLATIONS = sorted((yaml_files.properties_path() / "ablations").glob("*.yaml"))
ROWS: dict[str, Any] = {"wide": {"expert_width": 1}, "narrow": {"expert_width": 0.5}}


def cells(
    variants: dict[str, Any], files: list[Path] | None = None, seeds: int = 1, **settings: Any
) -> list[Cell]:
    grid = read_grid(["IDIOMoE"], [{"variants": variants, "seeds": seeds}])
    assert grid is not None
    return cells_of(grid, ["ml-100k"], files or [], settings)


# What is asked for


def test_without_variants_and_with_one_seed_there_is_no_grid() -> None:
    assert read_grid(["IDIOMoE", "SASRec"], [{}, {"epochs": 3}, {"seeds": 1}]) is None


def test_a_row_has_the_model_that_it_names_else_the_one_that_is_run() -> None:
    grid = read_grid(["MoT"], [{"variants": {"a": None, "b": {"model": "SASRec", "epochs": 1}}}])
    assert grid == Grid({"a": {"model": "MoT"}, "b": {"model": "SASRec", "epochs": 1}}, "a", 1)


def test_several_seeds_make_every_model_a_row() -> None:
    grid = read_grid(["A", "B"], [{"seeds": 2}, {"seeds": 3, "baseline": "B"}])
    assert grid == Grid({"A": {"model": "A"}, "B": {"model": "B"}}, "B", 3)


def test_new_rows_replace_those_before_them_and_their_baseline() -> None:
    first = {"variants": {"x": {}, "y": {}}, "baseline": "y"}
    grid = read_grid(["A"], [first, {"baseline": "x"}])
    assert grid is not None and grid.baseline == "x"
    grid = read_grid(["A"], [first, {"variants": {"z": {}, "w": {}}}])
    assert grid is not None and (list(grid.variants), grid.baseline) == (["z", "w"], "z")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"variants": {}}, "must be a mapping"),
        ({"variants": None}, "must be a mapping"),
        ({"variants": ["a", "b"]}, "must be a mapping"),
        ({"variants": {"a": 3}}, "a: 3 must be settings"),
        ({"variants": {"a": {1: 2}}}, "must be settings"),
        ({"variants": {8: {}}}, "the name 8 must be text"),
        ({"variants": {" ": {}}}, "must be text"),
        ({"variants": {"a": {"model": ["A"]}}}, "must be one model's name"),
        ({"variants": ROWS, "baseline": "wdie"}, "none of the rows: wide, narrow"),
        ({"baseline": "A"}, "no table"),
        ({"seeds": 0}, "from 1 to 100"),
        ({"seeds": 2021}, "from 1 to 100; the first is seed"),
        ({"seeds": True}, "whole number"),
        ({"seeds": "3"}, "whole number"),
    ],
)
def test_what_makes_no_grid_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as error:
        read_grid(["A"], [given])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_row_without_a_model_among_several_is_refused() -> None:
    with pytest.raises(SettingError, match="'wide' names no model, and A, B are run"):
        read_grid(["A", "B"], [{"variants": ROWS}])


# The runs


def test_a_rows_settings_win_over_the_command_lines_and_these_over_the_files(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("expert_width: 0.1\nepochs: 1\nseed: 5\n")
    rows = {"own": {"expert_width": 0.5}, "given": {}, "own epochs": {"epochs": 9}}
    own, given, epochs = cells(rows, [file], epochs=2, expert_width=0.25)
    assert [cell.settings["expert_width"] for cell in (own, given, epochs)] == [0.5, 0.25, 0.25]
    assert [cell.settings["epochs"] for cell in (own, given, epochs)] == [2, 2, 9]
    assert {cell.settings["seed"] for cell in (own, given, epochs)} == {5}


def test_every_row_runs_with_every_seed_on_every_data_set() -> None:
    grid = Grid({"a": {"model": "IDIOMoE"}, "b": {"model": "SASRec"}}, "a", 2)
    found = cells_of(grid, ["ml-100k", "amazon-toys"], [], {"seed": 7})
    assert [(c.dataset, c.variant, c.settings["seed"]) for c in found] == [
        (dataset, row, seed)
        for dataset in ("ml-100k", "amazon-toys")
        for row in ("a", "b")
        for seed in (7, 8)
    ]
    assert [c.settings["item_text_fields"] for c in found[::4]] == [
        {"title": "movie_title", "category": "class"},
        {"title": "title", "category": "categories"},
    ]


def test_a_setting_of_one_model_reaches_that_one_alone() -> None:
    rows = {"a": {"model": "IDIOMoE"}, "b": {"model": "SASRec"}}
    idiomoe, sasrec = cells(rows, n_layers=1)
    assert "n_layers" not in idiomoe.settings and sasrec.settings["n_layers"] == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"expert_widht": 1}, "did you mean 'expert_width'"),
        ({"n_layers": 1}, "unknown setting 'n_layers'"),  # SASRec's, which another row runs
        ({"model": "IDTransformer", "use_text": True}, "is made with use_text=False"),
        ({"model": "sasrec"}, "did you mean 'SASRec'"),
        ({"expert_width": 2}, "out of range"),
        ({"dataset": "ml-1m"}, "unknown setting 'dataset'"),
        ({"mask_seen": False}, "another protocol than 'base' (mask_seen)"),
        ({"topk": [10]}, "another protocol than 'base' (topk)"),
    ],
)
def test_a_row_that_cannot_be_run_or_compared_is_refused_by_name(
    row: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError) as error:
        cells({"base": {"model": "SASRec"}, "odd": row})
    assert "row 'odd'" in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_is_known_by_what_it_runs_and_not_by_its_row() -> None:
    wide, narrow = cells(ROWS)
    (renamed,) = cells({"other name": ROWS["wide"]}, checkpoint_dir="elsewhere")
    assert wide.key == renamed.key != narrow.key
    assert wide.key not in {cell.key for cell in cells(ROWS, seed=1)}
    assert "/" not in dataclasses.replace(wide, dataset="a/b c").key


def test_a_run_is_known_again_where_its_data_are_copied_to_until_they_change(
    tmp_path: Path,
) -> None:
    def key(place: str, **settings: Any) -> str:
        grid = Grid({"a": {"model": "SASRec"}}, "a", 1)
        (cell,) = cells_of(grid, ["shop"], [], {"data_path": str(tmp_path / place)} | settings)
        return cell.key

    for place, when in (("here", 1), ("there", 2)):
        write_dataset(tmp_path / place / "shop", [("u", "i", 1.0)])
        os.utime(tmp_path / place / "shop" / "shop.inter", (when, when))
    known = key("here")
    assert known == key("there") == key("here", expert_width=0.5)  # which SASRec does not heed
    assert known != key("here", mask_seen=False)
    with (tmp_path / "there" / "shop" / "shop.inter").open("a") as table:
        table.write("u\tj\t2\n")
    assert known != key("there")


def test_runs_of_different_protocols_make_no_result() -> None:
    run = {"variant": "a", "dataset": "x", "device": "CPU", "versions": {}}
    grid = Grid({"a": {}, "b": {}}, "a", 1)
    other = {"candidates": "all 3 items"}
    runs = [run | {"protocol": {"candidates": "all 2 items"}}, run | {"protocol": other}]
    with pytest.raises(SettingError, match="candidates"):
        grid_result(grid, {}, runs)
    runs[1]["dataset"] = "y"  # A table of its own.
    assert grid_result(grid, {}, runs)["protocol"]["y"] == other


# The files that come with the package


def test_the_papers_ablations_are_there() -> None:
    assert [path.stem for path in ABLATIONS] == [
        "attention", "backbone_size", "capacity", "cold_start", "expert_width", "placement",
        "pretraining", "routing", "semantic_ids",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_row_of_an_ablation_can_be_run(path: Path) -> None:
    content = yaml_files.read_settings(path)
    grid = read_grid([content.get("model", "IDIOMoE")], [content])
    assert grid is not None and grid.seeds == 3
    found = cells_of(grid, ["ml-100k", "amazon-toys"], [path], {})
    assert len({cell.key for cell in found}) == len(grid.variants) * 2 * 3
    for cell in found:
        row = content["variants"][cell.variant]
        assert cell.model == row.get("model", "IDIOMoE")
        settings = {key: value for key, value in row.items() if key != "model"}
        assert settings.items() <= cell.settings.items()


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_the_table_of_an_ablation_fits_a_terminal(path: Path) -> None:
    content = yaml_files.read_settings(path)
    runs = [
        {
            "variant": name,
            "dataset": "amazon-sports",
            "seed": seed,
            "test": {"hit@10": 0.123456, "ndcg@10": 0.0654321},
            "parameters": {"total": 123_456_789},
        }
        for name in content["variants"]
        for seed in (1, 2)
    ]
    protocol = {"amazon-sports": {"valid_metric": "NDCG@10"}}
    text = table([{"baseline": content["baseline"], "protocol": protocol, "runs": runs}])
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("0.0654 ± 0.0000") == len(content["variants"])


def test_the_results_of_pretraining_are_of_its_rows() -> None:
    content = yaml.safe_load((yaml_files.properties_path() / "ablations/pretraining.yaml").open())
    for name in ("backbone-amazon-toys", "backbone-ml-100k", "backbone-ml-100k-SASRec"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        for row, settings in result["variants"].items():  # and those of its time
            assert content["variants"][row].items() <= settings.items()
        (dataset,) = result["dataset"]
        grid = read_grid(["IDIOMoE"], [yaml_files.read_settings(RESULTS / f"{name}.json")])
        assert grid is not None
        found = cells_of(grid, [dataset], [], result["settings"])
        assert [(c.variant, c.settings["seed"]) for c in found] == [
            (run["variant"], run["seed"]) for run in result["runs"]
        ]


def test_a_mix_makes_another_run_of_any_model_and_a_text_of_language_models() -> None:
    def identities(**given: Any) -> list[str]:
        rows = {name: {"model": name} for name in ("SASRec", "SASRecCE", "IDIOMoE")}
        return [cell.identity for cell in cells(rows, **given)]

    Path("wiki.txt").write_text("text")
    alone, mixed = identities(), identities(mix="TransitionCounter")
    assert all(one != other for one, other in zip(alone, mixed, strict=True))
    measured = identities(language_file="wiki.txt")
    assert measured[:2] == alone[:2] and measured[2] != alone[2]
    Path("wiki.txt").write_text("another text")
    assert identities(language_file="wiki.txt")[2] not in (measured[2], alone[2])


def test_other_vectors_of_text_make_another_run_only_of_models_that_read_text() -> None:
    without = ("SASRec", "SASRecCE", "TransitionCounter")
    models = (*without, "TIGER", "IDIOMoE")

    def identities(**given: Any) -> dict[str, str]:
        return {
            cell.model: cell.identity for cell in cells({m: {"model": m} for m in models}, **given)
        }

    def changed(one: dict[str, str], other: dict[str, str]) -> list[str]:
        return [model for model in models if one[model] != other[model]]

    Path("vectors.npz").write_bytes(b"one")
    found = identities(text_encoder="vectors.npz")
    assert changed(found, identities(text_encoder="tfidf")) == ["TIGER", "IDIOMoE"]
    Path("vectors.npz").write_bytes(b"another")
    assert changed(found, identities(text_encoder="vectors.npz")) == ["TIGER", "IDIOMoE"]
