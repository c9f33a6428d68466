"""What the tables say, in every format."""

import csv
import json
import re
from pathlib import Path

import pytest

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.leaderboard.outputs import protocol_notes
from recbole_idiomoe.leaderboard.tables import published, sources
from tests.leaderboard.boards import Runner
from tests.leaderboard.conftest import Lead


def markdown_rows(text: str) -> dict[str, dict[str, str]]:
    """The tables in ``text``: each row's cells by the column's title, by the row's name."""
    rows: dict[str, dict[str, str]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        header, _, *lines = (
            [cell.strip("| ") for cell in line.split(" | ")] for line in block.splitlines()
        )
        for line in lines:
            rows.setdefault(line[0], {}).update(zip(header, line, strict=True))
    return rows


WHOLE = "IDIOMoE (trained whole)"


def test_markdown_has_means_places_differences_and_costs(lead: Lead) -> None:
    lead("SASRec,IDIOMoE,GRU4Rec", seeds=3)
    text = Path("board/README.md").read_text()
    rows = markdown_rows(text)
    assert list(rows) == [WHOLE, "SASRec", "GRU4Rec"]
    assert re.fullmatch(r"\*\*0\.\d{4} ± 0\.\d{4}\*\*", rows[WHOLE]["NDCG@10"])
    assert 0.01 < float(rows[WHOLE]["SE"]) < 0.1
    assert re.fullmatch(r"<u>0\.\d{4} ± 0\.\d{4}</u>", rows["SASRec"]["NDCG@10"])
    assert rows["SASRec"]["p"] == rows["SASRec"]["Δ"] == "-"
    assert rows[WHOLE]["p"] == "< .001" and rows[WHOLE]["Δ"].startswith("+")
    assert rows[WHOLE]["p IDIOMoE"] == rows[WHOLE]["Δ IDIOMoE"] == "-"
    assert rows["SASRec"]["p IDIOMoE"] == "< .001" and rows["SASRec"]["Δ IDIOMoE"].startswith("-")
    assert rows["GRU4Rec"]["kind"] == "baseline" and rows[WHOLE]["kind"] == "IDIOMoE"
    wanted = {"train s": "2.5", "eval s": "0.5", "params": "1.2M", "MiB": "321", "seeds": "3"}
    assert wanted.items() <= rows["SASRec"].items()
    assert rows[WHOLE]["published NDCG@10"] == "0.0531 (paper)"
    assert "over 3 seeds" in text and "Δ, p: against SASRec, the best baseline;" in text
    assert f"against {WHOLE}, by NDCG@10 on validation" in text and "Holm's correction" in text
    assert "60 test targets" in text and "99,999 flips" in text
    assert "Published, of another protocol, paper: the paper, Table 2" in text
    assert text.count("Protocol: split LS valid_and_test") == 1


def test_no_spread_stands_where_nothing_is_drawn_by_chance(lead: Lead) -> None:
    result = lead("SASRec,TransitionCounter", seeds=3)
    by_name = {row["row"]: row for row in result["rows"]}
    counted = by_name["TransitionCounter"]
    assert set(counted["deviation"].values()) == {None} and counted["seeds"] == [2020, 2021, 2022]
    assert by_name["SASRec"]["deviation"]["ndcg@10"] > 0
    value = f"{counted['test']['ndcg@10']:.4f}"
    spread = {"README.md": " ± ", "leaderboard.tex": r" $\pm$ ", "leaderboard.html": " ± "}
    texts = {name: Path("board", name).read_text() for name in spread}
    for name, text in (texts | {"": result["table"]}).items():
        sign = spread.get(name, " ± ")
        assert value in text and value + sign not in text
        assert f"{by_name['SASRec']['test']['ndcg@10']:.4f}{sign}" in text
        flat = " ".join(text.split())
        assert "over 3 seeds" in flat
        assert "same with any seed, as nothing is drawn by chance: TransitionCounter." in flat


def test_the_protocol_is_said_once_and_what_differs_for_each_data_set() -> None:
    shared, *own = protocol_notes(
        {"toys": {"order": "TO", "candidates": "5"}, "beauty": {"order": "TO", "candidates": "6"}}
    )
    assert shared == "Protocol: order TO"
    assert own == ["toys: candidates 5", "beauty: candidates 6"]


def test_runs_that_shared_the_machine_say_so(
    lead: Lead, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_idiomoe.grid import running as grid_runs

    def one_by_one(cells: list[grid_runs.Cell], jobs: int, *places: Path) -> grid_runs.Outcomes:
        return grid_runs._run_here(cells, *places)

    monkeypatch.setattr(grid_runs, "_run_in_processes", one_by_one)
    lead("SASRec")
    lead("SASRec,IDIOMoE", jobs=2)
    text = Path("board/README.md").read_text()
    rows = markdown_rows(text)
    assert rows[WHOLE]["train s"] == "2.5\\*" and rows["SASRec"]["train s"] == "2.5"
    assert "Other runs went on meanwhile (jobs): seconds do not compare." in text


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
    assert list(published("HSTU", "amazon-toys", "ndcg@10").values()) == [0.0536, 0.0450]
    assert published("SASRec", "ml-100k", "ndcg@10") == {}


def test_a_published_number_stands_beside_the_model_itself_alone(lead: Lead) -> None:
    variants = {
        "SASRec": {},
        "IDIOMoE": {"model": "IDIOMoE"},
        "IDIOMoE again": {"model": "IDIOMoE"},
        "IDTransformer from text": {"model": "IDTransformer", "item_init": "text"},
        "GRU4Rec": {"model": "GRU4Rec", "train_batch_size": 128},
    }
    lead("SASRec", variants=variants)
    text = Path("board/README.md").read_text()
    rows = markdown_rows(text)
    numbers = {
        name.removesuffix(" (trained whole)"): row["published NDCG@10"]
        for name, row in rows.items()
    }
    assert numbers == dict.fromkeys(variants, "-") | {
        "SASRec": "0.0542 (paper)",
        "IDIOMoE": "0.0531 (paper)",
        "GRU4Rec": "0.0084 (paper-copied)",
    }
    for name in ("leaderboard.tex", "leaderboard.html"):
        text = Path("board", name).read_text()
        assert "0.0531 (paper)" in text and "0.0271 (paper)" not in text


def test_a_mix_is_a_row_of_its_own_in_every_format(lead: Lead) -> None:
    result = lead("SASRec,IDIOMoE,TransitionCounter", seeds=2, mix="TransitionCounter")
    names = ["IDIOMoE", "SASRec", "TransitionCounter"]
    mixes = ["IDIOMoE + TransitionCounter", "SASRec + TransitionCounter"]
    assert sorted(row["row"] for row in result["rows"]) == sorted(names + mixes)
    by_name = {row["row"]: row for row in result["rows"]}
    assert [by_name[name]["mixed"] for name in (*names, *mixes)] == [False] * 3 + [True] * 2
    assert by_name[mixes[0]]["ours"] and not by_name[mixes[1]]["ours"]
    # Whoever is mixed is compared with the best baseline that may be, all others with SASRec.
    assert by_name["SASRec"]["p"] is by_name[mixes[1]]["p"] is None
    base = {name: by_name[name]["test"]["ndcg@10"] for name in by_name}
    for name, against in ((mixes[0], mixes[1]), ("IDIOMoE", "SASRec")):
        wanted = base[name] / base[against] - 1
        assert by_name[name]["difference"] == pytest.approx(wanted)

    text = Path("board/README.md").read_text()
    assert not re.search(r"^- [-+*] ", text, flags=re.MULTILINE)  # a list in a list
    rows = markdown_rows(text)
    shown = f"{WHOLE} + TransitionCounter"
    assert rows[shown]["NDCG@10"].startswith("**") and "train s" not in rows[shown]
    assert rows[WHOLE]["train s"] == "2.5" and rows[WHOLE]["published NDCG@10"] != "-"
    assert rows[shown]["published NDCG@10"] == "-"
    note = next(
        line for line in text.splitlines() if line.startswith("- A row + TransitionCounter is")
    )
    assert f"on validation: {WHOLE} 0.15, 0.2; SASRec 0.15, 0.2." in note
    assert f"against {mixes[1]} and {shown}, the best on validation, mixed or not" in note
    latex = Path("board/leaderboard.tex").read_text()
    assert shown in latex and mixes[1] in latex
    assert Path("board/leaderboard.html").read_text().count(f">{shown}</th>") == 1
    with open("board/leaderboard.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["mix"]]
    found = [(line["row"], line["model"], line["mix"], line["mix_weight"]) for line in lines]
    assert (mixes[0], "IDIOMoE", "TransitionCounter", "0.15") in found and len(found) == 4


def test_without_a_mixed_baseline_a_mix_is_compared_with_the_best_there_is(lead: Lead) -> None:
    variants = {"SASRec": {}, "ours": {"model": "IDIOMoE", "mix": "TransitionCounter"}}
    result = lead("SASRec", variants=variants)
    by_name = {row["row"]: row for row in result["rows"]}
    assert by_name["SASRec"]["p"] is None
    assert by_name["ours + TransitionCounter"]["difference"] > 0.2


def test_the_terminal_has_80_columns_of_it(lead: Lead) -> None:
    Path("wiki.test.txt").write_text("text")
    result = lead(
        "SASRec,IDIOMoE,GRU4Rec", seeds=2, mix="TransitionCounter", language_file="wiki.test.txt"
    )
    lines = result["table"].splitlines()
    assert max(map(len, lines)) <= 80
    assert {"NDCG@10", "SE", "HR@10", "ΔNLL"} < set(lines[0].split())
    assert lines[0].split()[0] == "amazon-toys"
    (compared,) = (line for line in lines if line.startswith("row "))
    assert compared.split() == ["row", "Δ", "p", "Δ", "IDIOMoE", "p", "IDIOMoE"]
    assert "bold" not in result["table"] and "bold" in Path("board/README.md").read_text()


def test_language_kept_has_a_column_where_it_was_measured(lead: Lead) -> None:
    Path("wiki.test.txt").write_text("text")
    frozen = {"model": "IDIOMoE", "freeze": "backbone"}
    variants = {"SASRec": {}, "trained": {"model": "IDIOMoE"}, "frozen": frozen}
    lead("SASRec", variants=variants, seeds=2, language_file="wiki.test.txt")
    text = Path("board/README.md").read_text()
    rows = markdown_rows(text)
    changes = {name: row["ΔNLL"] for name, row in rows.items()}
    assert changes == {"SASRec": "-", "trained (trained whole)": "+0.3750", "frozen": "0"}
    assert "- ΔNLL: nats a token on wiki.test.txt" in text
    assert "12,345 tokens of bundled's tokenizer, windows of 512 that overlap by half" in text
    with open("board/leaderboard.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["row"] == "trained"]
    assert [line["language_nll_change"] for line in lines] == ["0.25", "0.5"]
    assert "ΔNLL" in Path("board/leaderboard.html").read_text()
    assert r"$\Delta$NLL" in Path("board/leaderboard.tex").read_text()
    # Where the file lay is nobody else's affair.
    assert "language_file" not in "".join(p.read_text() for p in Path("board/runs").glob("*.json"))
    lead("SASRec,IDIOMoE")
    assert "ΔNLL" in Path("board/README.md").read_text()  # of the rows that stay


def test_without_a_text_there_is_no_such_column(lead: Lead) -> None:
    assert "ΔNLL" not in lead()["table"] + Path("board/README.md").read_text()


def test_tuned_settings_stand_beside_the_metric_in_every_format(lead: Lead) -> None:
    Path("tuned").mkdir()
    for model in ("SASRec", "IDIOMoE"):
        file = Path(f"tuned/{model}_amazon-toys.yaml")
        file.write_text("learning_rate: 0.0123\nweight_decay: 0.25\n")
    result = lead("SASRec,IDIOMoE", tuned="tuned", weight_decay=0.5)
    # What is given wins over what was tuned.
    assert [row["tuned"] for row in result["rows"]] == [{"learning_rate": 0.0123}] * 2
    lead("GRU4Rec")
    text = Path("board/README.md").read_text()
    rows = markdown_rows(text)
    kinds = {name: row["settings"] for name, row in rows.items()}
    assert kinds == {WHOLE: "tuned", "SASRec": "tuned", "GRU4Rec": "default"}
    said = "SASRec, tuned on validation: learning_rate=0.0123."
    assert said in text and said in Path("board/leaderboard.html").read_text()
    assert said in " ".join(lead("GRU4Rec")["table"].split())
    assert said.replace("_", r"\_") in Path("board/leaderboard.tex").read_text()
    with open("board/leaderboard.csv", newline="") as file:
        found = {line["row"]: line["tuned"] for line in csv.DictReader(file)}
    assert json.loads(found["SASRec"]) == {"learning_rate": 0.0123} and found["GRU4Rec"] == ""
    # The same settings given by hand are the same run, which nobody tuned.
    result = lead("SASRec", learning_rate=0.0123, weight_decay=0.5)
    assert {row["row"]: row["tuned"] for row in result["rows"]}["SASRec"] == {}


def test_rows_are_named_by_what_is_trained_and_say_what_is_not_as_in_the_paper(lead: Lead) -> None:
    variants = {
        "SASRec": {},
        "IDIOMoE": {"model": "IDIOMoE"},
        "text kept": {"model": "IDIOMoE", "freeze": "text_expert", "item_init": "random"},
        "ID": {"model": "IDTransformer"},
    }
    result = lead("SASRec", variants=variants)
    labels = {row["row"]: row["label"] for row in result["rows"]}
    assert labels == {name: name for name in variants} | {
        "IDIOMoE": WHOLE,
        "ID": "ID (trained whole)",
    }
    assert {row["row"]: row["kind"] for row in result["rows"]} == {
        "SASRec": "baseline",
        "IDIOMoE": "IDIOMoE",
        "text kept": "IDIOMoE",
        "ID": "control",
    }
    text = Path("board/README.md").read_text()
    (note,) = (line for line in text.splitlines() if line.startswith("- Not as in the paper"))
    assert "(freeze=text_expert, item_init=random, " in note
    assert f"{WHOLE}: freeze=none, item_init=text, text_smoothing=0.1, " in note
    assert "ID (trained whole): freeze=none, " in note
    assert "text kept: text_smoothing=" in note
    frozen = lead("IDIOMoE", freeze="backbone", variants={"frozen": {}})
    labels = {row["row"]: row["label"] for row in frozen["rows"]}
    assert labels["frozen"] == "frozen (backbone frozen)"
    with open("board/leaderboard.csv", newline="") as file:
        trained = {line["row"]: line["trained"] for line in csv.DictReader(file)}
    assert trained["IDIOMoE"] == "trained whole" and trained["SASRec"] == ""


def test_controls_are_compared_with_idiomoe(lead: Lead) -> None:
    result = lead("SASRec,IDIOMoE,IDTransformer", seeds=2)
    rows = {row["row"]: row for row in result["rows"]}
    base = rows["IDIOMoE"]["test"]["ndcg@10"]
    for name in ("SASRec", "IDTransformer"):
        wanted = rows[name]["test"]["ndcg@10"] / base - 1
        assert rows[name]["difference_from_idiomoe"] == pytest.approx(wanted)
        assert 0 < rows[name]["p_from_idiomoe"] <= 1
    assert rows["IDIOMoE"]["p_from_idiomoe"] is None


def test_rows_whose_best_epoch_is_the_last_allowed_are_marked(lead: Lead) -> None:
    variants = {"SASRec": {}, "short": {"model": "GRU4Rec", "epochs": 2}}
    result = lead("SASRec", variants=variants, seeds=3, mix="TransitionCounter")
    rows = {row["row"]: row["runs_at_last_epoch"] for row in result["rows"]}
    assert rows["short"] == 3 and rows["SASRec"] == 0
    text = Path("board/README.md").read_text()
    names = set(markdown_rows(text))
    assert {"short†", "short† + TransitionCounter", "SASRec"} < names
    (note,) = (line for line in text.splitlines() if line.startswith("- † May not have converged"))
    assert "short epoch 2 in 3 of 3 runs." in note and "SASRec" not in note
    assert r"short$\dagger$" in Path("board/leaderboard.tex").read_text()
