"""What the tables say, in every format."""

import csv
import re
from pathlib import Path

import pytest

from recbole_idiomoe import yaml_files
from recbole_idiomoe.leaderboard.formats import protocol_notes
from recbole_idiomoe.leaderboard.published import published, sources
from tests.leaderboard.boards import Runner
from tests.leaderboard.conftest import Lead


def markdown_rows(text: str) -> dict[str, dict[str, str]]:
    """The first table in ``text``: each row's cells by the column's title, by the row's name."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split(" | ")] for line in lines)
    names = [cell.strip("| ") for cell in header]
    cells = [dict(zip(names, (c.strip("| ") for c in row), strict=True)) for row in rows]
    return {row["row"]: row for row in cells}


def test_markdown_has_means_places_differences_and_costs(lead: Lead) -> None:
    lead("SASRec,IDIOMoE,GRU4Rec", seeds=3)
    text = Path("board/README.md").read_text()
    rows = markdown_rows(text)
    assert list(rows) == ["IDIOMoE", "SASRec", "GRU4Rec"]
    assert re.fullmatch(r"\*\*0\.\d{4} ± 0\.\d{4}\*\*", rows["IDIOMoE"]["NDCG@10"])
    assert re.fullmatch(r"<u>0\.\d{4} ± 0\.\d{4}</u>", rows["SASRec"]["NDCG@10"])
    assert rows["SASRec"]["p"] == rows["SASRec"]["Δ"] == "-"
    assert rows["IDIOMoE"]["p"] == "< .001" and rows["IDIOMoE"]["Δ"].startswith("+")
    assert rows["GRU4Rec"]["kind"] == "baseline" and rows["IDIOMoE"]["kind"] == "ours"
    wanted = {"train s": "2.5", "eval s": "0.5", "params": "1.2M", "MiB": "321", "seeds": "3"}
    assert wanted.items() <= rows["SASRec"].items()
    assert rows["IDIOMoE"]["published NDCG@10"] == "0.0531 (paper)"
    assert "over 3 seeds" in text and "against SASRec, the best baseline" in text
    assert "60 test targets" in text and "9,999 permutations" in text
    assert "Published, of another protocol, paper: the paper, Table 2" in text
    assert text.count("Protocol: split LS valid_and_test") == 1


def test_the_protocol_is_said_once_and_what_differs_for_each_data_set() -> None:
    shared, *own = protocol_notes(
        {"toys": {"order": "TO", "candidates": "5"}, "beauty": {"order": "TO", "candidates": "6"}}
    )
    assert shared == "Protocol: order TO"
    assert own == ["toys: candidates 5", "beauty: candidates 6"]


def test_runs_that_shared_the_machine_say_so(
    lead: Lead, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_idiomoe import grid_runs

    def one_by_one(cells: list[grid_runs.Cell], jobs: int, *places: Path) -> grid_runs.Outcomes:
        return grid_runs._run_here(cells, runner, places[0])

    monkeypatch.setattr(grid_runs, "_run_in_processes", one_by_one)
    lead("SASRec")
    lead("SASRec,IDIOMoE", jobs=2)
    text = Path("board/README.md").read_text()
    rows = markdown_rows(text)
    assert rows["IDIOMoE"]["train s"] == "2.5\\*" and rows["SASRec"]["train s"] == "2.5"
    assert "the seconds of IDIOMoE do not compare" in text


def test_csv_has_a_line_a_run(lead: Lead) -> None:
    result = lead("SASRec,IDIOMoE", "amazon-toys,amazon-beauty", seeds=2)
    with open("board/leaderboard.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({(line["dataset"], line["row"], line["seed"]) for line in lines}) == len(lines) == 8
    for row in result["rows"]:
        own = [
            line for line in lines if (line["dataset"], line["row"]) == (row["dataset"], row["row"])
        ]
        for metric, mean in row["test"].items():
            assert sum(float(line[metric]) for line in own) / 2 == pytest.approx(mean)
        assert {line["alone"] for line in own} == {"True"}


def test_latex_is_escaped_and_balanced(lead: Lead) -> None:
    odd = {"[50% & $x_1$] {a}\\b #|~^": {"model": "SASRec"}, "IDIOMoE": {}}
    lead("IDIOMoE", variants=odd)
    text = Path("board/leaderboard.tex").read_text()
    body = re.sub(r"^%.*$", "", text, flags=re.MULTILINE)
    # What is left of every special character is LaTeX's own.
    plain = re.sub(r"\\[&%$#_{}]", "", body)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert "#" not in plain and "_" not in plain and "~" not in plain
    tabular = body.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    lines = [line for line in tabular.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin\{tabular\}\{(l+r+)\}", body)
    assert columns and len(lines) == 3
    for line in lines:
        assert len(re.findall(r"(?<!\\)&", line)) == len(columns[1]) - 1
        assert not line.startswith("[")
    assert r"\textbf{0." in tabular and r"\underline{0." in tabular and r"$\pm$" not in tabular


def test_what_is_published_names_its_source_and_protocol() -> None:
    content = yaml_files.read_settings(yaml_files.properties_path() / "published.yaml")
    named = {
        source
        for models in content["numbers"].values()
        for found in models.values()
        for source in found
    }
    assert named == set(sources()) and all(": " in about for about in sources().values())
    for models in content["numbers"].values():
        for found in models.values():
            for numbers in found.values():
                assert 0 < numbers["ndcg@10"] < numbers["hit@10"] < 0.2
    assert [p.value for p in published("HSTU", "amazon-toys", "ndcg@10")] == [0.0536, 0.0450]
    assert published("SASRec", "ml-100k", "ndcg@10") == []
