"""The commands on runs that were trained: files, tables, pictures, and one line for what fails."""

import csv
import json
import math
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import load
from recbole_idiomoe.analysis import ffn_memory as module
from recbole_idiomoe.analysis import outputs
from recbole_idiomoe.analysis.__main__ import main
from recbole_idiomoe.analysis.commands import COMMANDS, PROGRAM
from recbole_idiomoe.analysis.efficiency import _memory, dense_form, make_batch
from recbole_idiomoe.analysis.neurons import value_vectors
from recbole_idiomoe.analysis.plot_layout import plot_file
from recbole_idiomoe.analysis.plots import PLOTS
from recbole_idiomoe.analysis.report import HELP
from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.analysis.runs import _labels, open_runs
from recbole_idiomoe.analysis.settings import AnalysisSettings, EfficiencySettings
from recbole_idiomoe.lm import decoder_layers
from recbole_idiomoe.lm.decoder import ffn_names

Folders = dict[str, Path]
QUICK = {
    "ffn-memory": ["--k", "5"],
    "attention": ["--prompts", "3", "--histories", "4", "--distances", "5"],
    "language": ["--text", "words.txt", "--lm_eval", "single"],
    "efficiency": ["--length", "8", "16", "--batch_size", "2", "--repeats", "2"],
}


def analysed(name: str, *arguments: str | Path) -> dict[str, Any]:
    """What a command writes as JSON into ./out."""
    given = [name, *map(str, arguments), "--out", "out"]
    assert main(given) == 0
    content = json.loads((Path("out") / f"{name}.json").read_text(encoding="utf-8"))
    assert content["command"] == f"{PROGRAM} {shlex.join(given)}"
    return content


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a command which fails prints; nothing is written."""
    assert main([*map(str, arguments), "--out", "out"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and not Path("out").exists()
    return said.err


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_its_files_and_prints_its_tables(
    name: str,
    folders: Folders,
    drawn: None,
    lm_eval: ModuleType,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("matplotlib")
    Path("words.txt").write_text("red green blue " * 9, encoding="utf-8")
    content = analysed(name, folders["IDIOMoE"], folders["ItemLLM"], *QUICK[name])
    assert [run["run"] for run in content["runs"]] == ["IDIOMoE", "ItemLLM"]
    assert not any(
        str(Path.home()) in run["folder"] or "/" in run["folder"] for run in content["runs"]
    )
    printed = capsys.readouterr().out
    assert content["title"] in printed and all(note[:40] in printed for note in content["notes"])
    assert max(map(len, printed.splitlines())) <= 80
    assert not any(note in caplog.text for note in content["notes"])  # they are printed already
    for table, rows in content["tables"].items():
        with open(f"out/{name}-{table}.csv", newline="", encoding="utf-8") as file:
            written = list(csv.DictReader(file))
        assert [row["run"] for row in written] == [row["run"] for row in rows] and rows
        for row, again in zip(rows, written, strict=True):
            assert [str(v) if v is not None else "" for v in row.values()] == list(again.values())
    # A picture can be drawn from the JSON alone, and is the one that was written.
    analysis = Analysis(**content)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for picture in PLOTS[name]:
        assert content["tables"][picture.table]
        files = {kind: Path(f"out/{name}-{picture.name}.{kind}").read_bytes() for kind in starts}
        assert all(files[kind].startswith(start) for kind, start in starts.items())
        assert files["svg"] == plot_file(picture, analysis, "svg")


def test_a_terminal_has_all_figures_of_a_table_that_is_wider() -> None:
    """Of a shop with long names, its two runs and two neurons each."""
    places = [(run, neuron) for run in ("IDTransformer (1)", "ItemLLM") for neuron in (7, 131)]
    rows: list[Row] = [
        {"run": run, "expert": "item expert", "layer": 5, "neuron": neuron, "rank": rank}
        | {"item": f"B00000IV3{rank}", "title": f"Wooden train set with {rank} bridges"}
        | {"category": f"Play Trains & Railways {rank}", "cosine": 0.5 + rank / 100 + neuron / 1000}
        | {"token": f" straightforward{rank}", "token_cosine": 0.25 + rank / 100}
        for run, neuron in places
        for rank in (1, 2)
    ]
    figures = ("dense_ms", "run_ms", "more_time_%", "spread_%", "dense_examples_s")
    figures += ("run_examples_s", "dense_tokens_s", "run_tokens_s")
    costs: list[Row] = [
        {"run": "IDTransformer (1)", "length": length, "phase": phase}
        | {name: 4.321 * length + len(phase) + n for n, name in enumerate(figures)}
        | {"run_tokens_s": 45678.9 + length + len(phase)}
        for length in (512, 1024)
        for phase in ("train", "infer")
    ]
    likelihood: list[Row] = [{"run": "r" * 26, **{f"measure_{n}": n / 3 for n in range(7)}}]
    kept: list[Row] = [
        {"run": f"IDIOMoE freeze={policy}", "tokens": 352_614, "bytes": 1_287_656}
        | {f"perplexities{n}": len(policy) + n / 3 for n in range(3)}
        for policy in ("backbone", "none")
    ]
    tables = {"neurons": rows, "costs": costs, "text": likelihood, "kept": kept}
    analysis = Analysis(name="any", title="Any", settings={}, tables=tables, notes=[])
    printed = outputs.plain_text(analysis, [Path("out/any.json")])
    assert max(map(len, printed.splitlines())) <= 80
    for run, neuron in places:
        table = printed.partition(f"{run}, item expert, layer 5, neuron {neuron}\n")[2]
        table = table.partition("\n\n")[0]
        for rank in (1, 2):
            assert f"B00000IV3{rank}  Wooden tr" in table and f"{0.25 + rank / 100:.4f}" in table
            assert f"{0.5 + rank / 100 + neuron / 1000:.4f}" in table
    for length in (512, 1024):
        table = printed.partition(f"IDTransformer (1), length {length}\n")[2].split("\n\n")[0]
        assert all(f"{45_679 + length + more:,}" in table for more in (5,))
    assert "r" * 26 in printed and "2.000" in printed
    table = printed.partition("tokens 352614\n")[2].split("\n\n")[0]
    assert "IDIOMoE freeze=backbone" in table and "IDIOMoE freeze=none" in table


def test_without_matplotlib_there_are_numbers(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    analysed("ffn-memory", folders["IDIOMoE"], "--k", "5")
    assert {path.suffix for path in Path("out").iterdir()} == {".json", ".csv"}
    assert "pip install" in capsys.readouterr().out


def test_files_go_into_the_runs_folder_by_default(folders: Folders) -> None:
    assert main(["efficiency", str(folders["ItemLLM"]), *QUICK["efficiency"]]) == 0
    assert (folders["ItemLLM"] / "analysis" / "efficiency.json").is_file()
    assert len(load(folders["ItemLLM"]).recommend(["i1"], k=2)) == 2  # it is still a run's


def test_a_cluster_planted_in_a_trained_model_is_found(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neuron 3 of layer 1's item expert is made to point to items 5 to 9 of one category."""
    model = load(folders["IDIOMoE"])
    lm = model.catalog_lm.lm
    rows = model.catalog.rows([f"i{n}" for n in range(5, 10)])
    direction = torch.randn(lm.config.hidden_size, generator=torch.Generator().manual_seed(1))
    block, name = decoder_layers(lm.backbone)[1], ffn_names(lm.backbone)[1]
    with torch.no_grad():
        lm.item_table.rows[rows] = direction + 0.01 * torch.randn(5, len(direction))
        getattr(block, name).item_expert.down_proj.weight[:, 3] = 7 * direction
    model.save(tmp_path / "planted")
    wanted = [
        "rare" if row in rows else f"of its own {row}" for row in range(model.catalog.item_num)
    ]
    monkeypatch.setattr(
        "recbole_idiomoe.analysis.runs.Run.categories", lambda *_: ["", *wanted[1:]]
    )
    content = analysed("ffn-memory", tmp_path / "planted", "--k", "5", "--tau", "1")
    shown = [row for row in content["tables"]["neurons"] if row["expert"] == "item expert"]
    assert {(row["layer"], row["neuron"], row["category"]) for row in shown} == {(1, 3, "rare")}
    assert {row["item"] for row in shown} == {f"i{n}" for n in range(5, 10)}
    assert all(row["title"].endswith(f"thing {row['item'][1:]}") for row in shown)
    layers = {(r["expert"], r["layer"]): r for r in content["tables"]["layers"]}
    shares = [layers["item expert", at]["clustered"] for at in (0, 1)]
    assert shares[1] >= 1 / 24 and layers["item expert", None]["clustered"] == sum(shares) / 2
    assert all(row["cosine"] > 0.99 for row in shown)
    asked = analysed("ffn-memory", tmp_path / "planted", "--k", "5", "--neuron", "1:3", "0:2")
    places = {(r["expert"], r["layer"], r["neuron"]) for r in asked["tables"]["neurons"]}
    assert places == {(e, *at) for e in ("item expert", "text expert") for at in ((1, 3), (0, 2))}
    assert [
        r for r in asked["tables"]["neurons"] if (r["expert"], r["layer"]) == ("item expert", 1)
    ] == shown
    with open("out/ffn-memory-all.csv", newline="", encoding="utf-8") as file:
        every = list(csv.DictReader(file))
    assert len(every) == 2 * (24 + 48)


def test_categories_are_the_entry_that_is_asked_for(folders: Folders) -> None:
    """Every item of the data is of toys|games."""
    (run,) = open_runs([folders["IDIOMoE"]], AnalysisSettings())
    for level, wanted in (
        (-1, "games"),
        (0, "toys, games"),
        (1, "toys"),
        (2, "games"),
        (9, "games"),
    ):
        assert run.categories(level=level) == ["", *[wanted] * 40]
    run.histories(1)  # splitting changes how RecBole holds its columns
    assert run.categories("title", 1)[1].split()[1] == "thing"


def test_histories_are_those_of_test_users(folders: Folders) -> None:
    (run,) = open_runs([folders["IDIOMoE"]], AnalysisSettings())
    found = run.histories(7)
    assert len(found) == 7 and len(run.histories(10**6)) == 60
    for history in found:
        names = [int(run.catalog_lm.catalog.item_ids[row][1:]) for row in history]
        # Eight steps of a circle, the last of which is the test's target.
        assert names == [(names[0] + step) % 40 for step in range(7)]


def test_random_sets_of_items_are_as_pure_as_arithmetic_says() -> None:
    assert (module._random_purity(np.zeros(30, dtype=int), 5) == 1).all()
    assert (module._random_purity(np.arange(30), 5) == 1 / 5).all()
    assert (module._random_purity(np.full(30, module.NO_CATEGORY), 5) == 0).all()
    halves = module._random_purity(np.arange(2000) % 2, 2, draws=4000)
    assert halves.mean() == pytest.approx(0.75, abs=0.02)  # both alike half of the time


def test_a_frozen_backbone_attends_to_text_as_before_and_a_trained_one_does_not(
    folders: Folders,
) -> None:
    content = analysed("attention", folders["frozen"], folders["ItemLLM"], *QUICK["attention"])
    for table, columns in (
        ("text", ("previous", "first", "entropy")),
        ("distance", ("attention",)),
    ):
        for column in columns:
            change = {
                run["run"]: max(
                    abs(row[column] - row[f"untouched_{column}"])
                    for row in content["tables"][table]
                    if row["run"] == run["run"]
                )
                for run in content["runs"]
            }
            assert change["IDIOMoE"] == 0.0 < change["ItemLLM"]
    assert "previous 0, first 0, entropy 0." in content["notes"][2]
    for row in content["tables"]["items"]:
        whole = row["item_to_itself"] + row["item_to_items"] + row["item_to_text"]
        assert whole == pytest.approx(1.0)


@pytest.mark.usefixtures("drawn_once")  # with gaps
def test_attention_reads_a_text_and_histories_of_ones_own(folders: Folders) -> None:
    Path("words.txt").write_text("red green blue black white thing " * 30, encoding="utf-8")
    Path("histories.txt").write_text("i1, i2,i3\n\ni7\n", encoding="utf-8")
    content = analysed(
        *("attention", folders["IDIOMoE"], "--text", "words.txt", "--prompts", "2"),
        *("--prompt_tokens", "11", "--histories_file", "histories.txt"),
    )
    assert "2 prompts of 22 tokens" in content["notes"][2] and "2 histories" in content["notes"][3]
    profile = [row["attention"] for row in content["tables"]["distance"]]
    assert all(value is None for value in profile[11:65])  # nothing is so far apart in 11 tokens
    # The rest of the two layers' blocks: distances 0 to 10 of each add up to less than all queries.
    assert all(value is not None and 0 <= value <= 1 for value in profile[:11])


@pytest.mark.usefixtures("drawn_once")  # with less in them
@pytest.mark.parametrize("name", ["TitleLLM", "IDTransformer"])
def test_models_of_text_alone_and_of_items_alone(name: str, folders: Folders) -> None:
    content = analysed("attention", folders[name], *QUICK["attention"])
    assert len(content["tables"]["text"]) == 2
    items = content["tables"]["items"]
    if name == "TitleLLM":
        assert items == [] and "spells items in text" in content["notes"][-1]
    else:  # the instruction is its text
        assert len(items) == 3 and all(0 < row["item_to_text"] < 1 for row in items)


def test_the_dense_form_is_the_run_without_what_was_added(folders: Folders) -> None:
    (run,) = open_runs([folders["IDIOMoE"]], AnalysisSettings())
    dense, lm = dense_form(run), run.catalog_lm.lm
    experts = sum(p.numel() for module in lm.added for p in module.parameters())
    sizes = [sum(p.numel() for p in model.parameters()) for model in (lm, dense)]
    assert sizes[0] - sizes[1] == experts > 0
    batch = make_batch(lm, EfficiencySettings(batch_size=4, item_share=0.25), 20)
    offset = lm.config.item_token_offset
    assert batch.item_count == 20 == int(batch.token_types.sum())
    assert torch.equal(batch.input_ids >= offset, batch.token_types.bool())
    assert batch.input_ids.max() < lm.config.vocab_size and (batch.input_ids != offset).all()
    for blocks in value_vectors(decoder_layers(dense.backbone)[0], "mlp"):
        assert blocks == "FFN"


def test_efficiency_has_the_papers_columns(folders: Folders) -> None:
    content = analysed("efficiency", folders["IDIOMoE"], *QUICK["efficiency"])
    rows = content["tables"]["costs"]
    assert [(r["phase"], r["length"]) for r in rows] == [
        (phase, length) for phase in ("train", "infer") for length in (8, 16)
    ]
    for row in rows:
        assert row["dense_ms"] > 0 and row["run_ms"] > 0 and row["spread_%"] >= 0
        assert row["more_time_%"] == pytest.approx(100 * (row["run_ms"] / row["dense_ms"] - 1))
        assert row["run_examples_s"] == pytest.approx(2 / row["run_ms"] * 1e3)
        assert row["run_tokens_s"] == pytest.approx(2 * row["length"] / row["run_ms"] * 1e3)
    assert len(content["tables"].get("memory", [])) == (4 if torch.cuda.is_available() else 0)


def test_memory_is_that_of_a_gpu() -> None:
    assert _memory(None, None) == {}  # as of a CPU
    found = _memory(2**30, 3 * 2**29)
    assert found == {"dense_gib": 1.0, "run_gib": 1.5, "more_memory_%": 50.0}


def test_runs_of_one_name_are_told_apart(folders: Folders) -> None:
    content = analysed("ffn-memory", folders["IDIOMoE"], folders["frozen"], "--k", "5")
    assert [run["run"] for run in content["runs"]] == ["IDIOMoE (1)", "IDIOMoE (2)"]
    assert content["runs"][0]["folder"] == folders["IDIOMoE"].name


def info(dataset: str = "toys", **settings: Any) -> dict[str, Any]:
    return {"model": "IDIOMoE", "dataset": dataset, "settings": settings}


@pytest.mark.parametrize(
    ("infos", "labels"),
    [
        ([info(), {"model": "ItemLLM", "dataset": "toys"}], ["IDIOMoE", "ItemLLM"]),
        ([info(), info("beauty")], ["IDIOMoE toys", "IDIOMoE beauty"]),
        ([info(seed=1, data_path="a"), info(seed=2)], ["IDIOMoE seed=1", "IDIOMoE seed=2"]),
        ([info(seed=1), info(seed=2), info(seed=1)], [f"IDIOMoE ({n})" for n in (1, 2, 3)]),
        ([info(seed=1, epochs=2), info(seed=2)], ["IDIOMoE (1)", "IDIOMoE (2)"]),
        ([info(), info()], ["IDIOMoE (1)", "IDIOMoE (2)"]),
    ],
)
def test_labels_are_as_short_as_can_be(infos: list[dict[str, Any]], labels: list[str]) -> None:
    assert _labels(infos) == labels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ffn-memori", "IDIOMoE"], "did you mean 'ffn-memory'?"),
        (["ffn-memory", "no/such"], "is not the folder of a run"),
        (["ffn-memory", "SASRec"], "SASRec, which is no language model"),
        (["ffn-memory", "TitleLLM"], "spells items in several tokens (item_tokens=title)"),
        (["efficiency", "TitleLLM"], "spells items in several tokens (item_tokens=title)"),
        (["ffn-memory", "IDIOMoE", "--k", "41"], "k=41 asks for more items than there are"),
        (["ffn-memory", "IDIOMoE", "--k", "0"], "--k=0 is out of range; give from 1 to 256."),
        (["ffn-memory", "IDIOMoE", "--tau", "1.5"], "--tau=1.5 is out of range"),
        (["ffn-memory", "IDIOMoE", "--neuron", "7"], "--neuron=7 is not of the form LAYER:NEURON"),
        (["ffn-memory", "IDIOMoE", "--neuron", "2:0"], "has layers 0 to 1, not 2."),
        (["ffn-memory", "IDIOMoE", "--neuron", "0:24"], "has neurons 0 to 23."),
        (["ffn-memory", "IDIOMoE", "--category_field", "brand"], "no column 'brand' of words"),
        (["ffn-memory", "IDIOMoE", "--device", "tpu9"], "--device=tpu9 is not available here"),
        (["ffn-memory", "IDIOMoE", "--kk", "3"], "unknown setting --kk"),
        (["attention", "IDIOMoE", "--text", "none.txt"], "--text=none.txt cannot be read"),
        (["attention", "IDIOMoE", "--histories_file", "no.txt"], "no.txt cannot be read"),
        (["attention", "IDIOMoE", "--histories_file", "odd.txt"], "odd.txt, line 2: '\"i3,i4'"),
        (["attention", "IDIOMoE", "--data_path", "elsewhere"], "elsewhere"),
        (["efficiency", "IDIOMoE", "--length", "4096"], "reads 1024 tokens at most"),
        (
            ["efficiency", "IDIOMoE", "--length", "1"],
            "--length=1 is out of range; give at least 2.",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    arguments: list[str], said: str, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    name, folder, *settings = arguments
    Path("odd.txt").write_text('i1,i2\n"i3,i4\n', encoding="utf-8")
    found = refused(capsys, name, folders.get(folder, Path(folder)), *settings)
    assert found.startswith("error: ") and said in found


def test_an_output_folder_that_is_a_file_is_refused_before_anything_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("taken").write_text("")
    assert main(["attention", "no/such", "--out", "taken"]) == 2
    assert capsys.readouterr().err == "error: --out=taken is a file; name a folder.\n"


def test_help_names_every_analysis(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    flat = " ".join(said.split())
    assert all(f"{name} {command.help}" in flat for name, command in COMMANDS.items())
    assert f"report {HELP}" in flat
    assert max(map(len, said.splitlines())) < 80
    assert main([]) == 2


def test_what_is_not_a_number_is_null_and_empty() -> None:
    assert outputs._finite({"a": [math.nan, 1.0], "b": math.inf}) == {"a": [None, 1.0], "b": None}
    assert outputs.comma_separated([{"a": math.nan, "b": "x,y"}]) == 'a,b\n,"x,y"\n'
    assert outputs._cells([math.nan, 12.345, None]) == ["-", "12.3", "-"]
    assert outputs._cells(["\n", "word"]) == ["'\\n'", "word"]


def test_names_and_numbers_are_written_for_people() -> None:
    rows: list[Row] = [{"run_tokens_s": 12345.6, "more_time_%": 9.81}]
    assert outputs.as_text(rows) == [["run tokens per s", "more time %"], ["12,346", "9.810"]]
