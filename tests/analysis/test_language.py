"""``language``: what a model that was made by hand must reach, and what nothing may change."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recbole_idiomoe import load
from recbole_idiomoe.analysis import benchmarks
from recbole_idiomoe.analysis.plot_layout import plot_svg
from recbole_idiomoe.analysis.plots import PLOTS
from recbole_idiomoe.analysis.results import Analysis
from recbole_idiomoe.protocol.language import language_kept
from tests.analysis.test_commands import Folders, analysed, refused

TEXT = "The café had no menu.\nIt was closed, in any case, from May to August. " * 5


@pytest.fixture(autouse=True)
def text() -> None:
    Path("text.txt").write_text(TEXT, encoding="utf-8")


@pytest.fixture
def uniform(folders: Folders, tmp_path: Path) -> tuple[Path, int]:
    """A run to whom all tokens of text are equally likely, and their number."""
    model = load(folders["IDIOMoE"])
    lm = model.catalog_lm.lm
    with torch.no_grad():
        lm.get_output_embeddings().weight.zero_()
    model.save(tmp_path / "uniform")
    return tmp_path / "uniform", lm.backbone.config.vocab_size


def test_a_uniform_model_has_the_likelihood_that_arithmetic_says(
    uniform: tuple[Path, int],
) -> None:
    folder, size = uniform
    (row,) = analysed("language", folder, "--text", "text.txt")["tables"]["text"]
    assert row["nll"] == pytest.approx(math.log(size), rel=1e-6)
    assert row["bytes"] == len(TEXT.encode())
    bits = row["tokens"] * math.log2(size) / row["bytes"]
    assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    for name in ("nll", "bits_per_byte"):
        change = row["bits_change" if name == "bits_per_byte" else "nll_change"]
        assert change == row[name] - row[f"untouched_{name}"] != 0


def test_a_frozen_text_path_changes_by_exactly_nothing(folders: Folders) -> None:
    content = analysed("language", folders["frozen"], folders["ItemLLM"], "--text", "text.txt")
    frozen, trained = content["tables"]["text"]
    assert frozen["nll_change"] == frozen["bits_change"] == 0.0
    assert trained["nll_change"] == trained["nll"] - trained["untouched_nll"] != 0.0
    notes = [note for note in content["notes"] if "beside its untouched backbone" in note]
    assert notes[0].startswith("IDIOMoE: 0 nats") and notes[1].startswith("ItemLLM: ")
    assert all("no language to keep" in note for note in notes)  # tiny models start from nothing
    analysis = Analysis(**content)
    picture = plot_svg(PLOTS["language"][0], analysis, narrow=False)
    assert ">0<" in picture and f">{trained['nll_change']:+.4f}<" in picture
    assert content["tables"]["tasks"] == [] and not Path("out/language-tasks.csv").exists()


def test_a_backbone_is_measured_once_for_all_runs_that_started_from_it(
    folders: Folders, lm_eval: Any
) -> None:
    same = [folders["IDIOMoE"], folders["ItemLLM"]]
    rows = analysed("language", *same, "--lm_eval", "single")["tables"]["tasks"]
    assert len(lm_eval.calls) == 3 and len({row["untouched_score"] for row in rows[::2]}) == 1
    # One that draws its weights anew started from others, whatever it was given.
    analysed("language", folders["IDIOMoE"], folders["IDTransformer"], "--lm_eval", "single")
    assert len(lm_eval.calls) == 3 + 4


def test_it_is_what_a_run_says_of_itself(folders: Folders) -> None:
    """``language_file`` measures the same as a run ends."""
    (row,) = analysed("language", folders["ItemLLM"], "--text", "text.txt")["tables"]["text"]
    run = json.loads((folders["ItemLLM"] / "run.json").read_text())
    settings = load(folders["ItemLLM"]).catalog_lm.settings
    kept = language_kept(
        folders["ItemLLM"],
        Path("text.txt"),
        settings,
        seed=run["settings"]["seed"],
        device=torch.device("cpu"),
    )
    for name in ("tokens", "nll", "untouched_nll", "nll_change"):
        assert kept[name] == row[name]


def test_benchmarks_are_asked_of_the_model_and_of_its_backbone(
    uniform: tuple[Path, int], lm_eval: Any
) -> None:
    """Where all tokens are equally likely the first one, token 0, is the fake's answer."""
    content = analysed(
        *("language", uniform[0], "--lm_eval", "single, whole,loose", "--lm_eval_limit", "7")
    )
    rows = content["tables"]["tasks"]
    # A group's own figure where it has one, else those of its tasks.
    assert [(row["task"], row["metric"]) for row in rows] == [
        *(("single", "acc"), ("single", "exact (strict)"), ("whole", "acc")),
        *(("third", "acc"), ("fourth", "acc")),
    ]
    for row in rows:
        if row["metric"] == "acc":
            assert row["score"] == 1.0 > row["untouched_score"] and row["stderr"] == 0.25
        else:
            assert row["score"] == row["untouched_score"] == 0.5 and row["stderr"] is None
        assert row["score_change"] == row["score"] - row["untouched_score"]
        assert row["examples"] == (None if row["task"] == "whole" else 7)
    assert [call["tasks"] for call in lm_eval.calls] == [["single", "whole", "loose"]] * 2
    assert all(call["limit"] == 7 for call in lm_eval.calls)
    assert content["versions"]["lm_eval"] == "0.4" and content["tables"]["text"] == []


def test_lm_eval_itself_finds_what_a_uniform_model_must_answer(
    uniform: tuple[Path, int], folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of answers whose every token is equally likely, the one of fewest tokens is likeliest."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answers = [" blue", " very dark and grey"]
    lines = [json.dumps({"asked": "It is", "answers": answers, "right": n}) for n in (0, 0, 1)]
    Path("tasks").mkdir()
    Path("tasks/lines.jsonl").write_text("\n".join(lines))
    data = json.dumps({"test": str(Path("tasks/lines.jsonl").absolute())})
    Path("tasks/short.yaml").write_text(
        "task: short_answer\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {data}}}\ndoc_to_text: '{{{{asked}}}}'\n"
        "doc_to_target: right\ndoc_to_choice: answers\nmetric_list: [{metric: acc}]\n"
    )
    own = ("--lm_eval", "short_answer", "--lm_eval_path", "tasks")
    rows = analysed("language", uniform[0], folders["frozen"], *own)["tables"]["tasks"]
    assert [row["task"] for row in rows] == ["short_answer"] * 2
    assert rows[0]["score"] == pytest.approx(2 / 3) and rows[0]["examples"] == 3
    assert rows[1]["score_change"] == 0.0
    Path("tasks/lines.jsonl").unlink()
    with pytest.raises(benchmarks.DataError, match="--lm_eval=short_answer cannot be loaded"):
        benchmarks.Benchmarks(
            benchmarks.LanguageSettings(lm_eval="short_answer", lm_eval_path="tasks")
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing to measure; give --text=FILE, --lm_eval=TASK or both."),
        (["--text", "none.txt"], "--text=none.txt cannot be read (No such file"),
        (["--text", "empty.txt"], "--text=empty.txt is empty"),
        (["--lm_eval", "singel"], "--lm_eval: unknown task 'singel'; did you mean 'single'?"),
        (["--lm_eval", "xyz"], "--lm_eval: unknown task 'xyz'; lm_eval ls tasks names them all."),
        (["--lm_eval", "offline"], "--lm_eval=offline cannot be loaded (ConnectionError: no route"),
        (["--lm_eval_limit", "-1"], "--lm_eval_limit=-1 is out of range; give at least 0."),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    given: list[str],
    said: str,
    folders: Folders,
    lm_eval: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("empty.txt").write_text(" \n")
    assert said in refused(capsys, "language", folders["ItemLLM"], *given)


def test_without_lm_eval_a_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    said = refused(capsys, "language", "no/such", "--lm_eval", "hellaswag")
    assert said == "error: --lm_eval needs lm_eval: pip install lm_eval\n"
