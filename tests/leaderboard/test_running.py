"""What a leaderboard runs: that which it lacks, once, whatever happened before."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import IdiomoeError, SettingError
from recbole_idiomoe.leaderboard.__main__ import main
from recbole_idiomoe.runs import execution
from tests.helpers import write_dataset
from tests.leaderboard.boards import Runner
from tests.leaderboard.conftest import Lead
from tests.training.cycle import TINY, write_cycle
from tests.training.kills import started

BOTH = [("SASRec", "amazon-toys", 2020), ("IDIOMoE", "amazon-toys", 2020)]
FILES = {"README.md", "leaderboard.csv", "leaderboard.html", "leaderboard.json", "leaderboard.tex"}


def rows(result: dict[str, Any]) -> dict[str, list[int]]:
    return {f"{row['dataset']} {row['row']}": row["seeds"] for row in result["rows"]}


def test_later_calls_add_models_seeds_and_data_sets(lead: Lead, runner: Runner) -> None:
    assert rows(lead()) == {"amazon-toys IDIOMoE": [2020], "amazon-toys SASRec": [2020]}
    assert runner.ran == BOTH
    lead()
    assert runner.ran == BOTH
    lead("GRU4Rec")
    lead("SASRec", seeds=2)
    assert runner.ran[2:] == [("GRU4Rec", "amazon-toys", 2020), ("SASRec", "amazon-toys", 2021)]
    result = lead("SASRec", "amazon-beauty")
    assert rows(result) == {
        "amazon-toys IDIOMoE": [2020],
        "amazon-toys SASRec": [2020, 2021],
        "amazon-toys GRU4Rec": [2020],
        "amazon-beauty SASRec": [2020],
    }
    assert {path.name for path in Path("board").iterdir()} == FILES | {"runs", "targets"}
    assert len(list(Path("board/runs").iterdir())) == 2 * len(runner.ran)
    assert not list(Path("saved").iterdir())


def test_an_interrupted_call_goes_on_with_what_is_left(lead: Lead, runner: Runner) -> None:
    runner.interrupted = 1
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; the same command goes on$"):
        lead()
    assert runner.ran == BOTH[:1] and not list(Path("saved").iterdir())
    assert main(["board"]) == 0  # its table so far
    assert "IDIOMoE" not in Path("board/README.md").read_text()
    runner.interrupted = None
    assert rows(lead()) == {"amazon-toys IDIOMoE": [2020], "amazon-toys SASRec": [2020]}
    assert runner.ran == BOTH


def test_a_run_that_was_kept_before_the_index_knew_is_found(lead: Lead, runner: Runner) -> None:
    lead("SASRec")
    before = Path("board/leaderboard.json").read_text()
    lead()
    Path("board/leaderboard.json").write_text(before)  # as a kill between the two leaves it
    assert len(rows(lead())) == 2 and runner.ran == BOTH


def test_ranks_alone_are_no_run(lead: Lead, runner: Runner) -> None:
    lead("SASRec")
    (run,) = Path("board/runs").glob("*.json")
    run.unlink()
    assert len(rows(lead("SASRec"))) == 1 and runner.ran == BOTH[:1] * 2


def test_a_failed_model_is_named_and_stops_no_other(
    lead: Lead, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.failing = {"SASRec"}
    with pytest.raises(IdiomoeError) as error:
        lead(seeds=2)
    assert str(error.value) == (
        "2 of 4 runs failed: SASRec on amazon-toys, seed 2020: SASRec has no luck, and 1 more. The "
        "others are in board; the same command tries these again."
    )
    said = capsys.readouterr().err
    assert "0 of 4 runs are in board, 4 to go\n" in said
    assert "run 2 of 4, SASRec on amazon-toys, seed 2021 failed: SASRec has no luck; about" in said
    text = Path("board/README.md").read_text()
    assert "| SASRec | failed | - | failed |" in text
    assert "SASRec failed with seed 2020, 2021: SASRec has no luck" in text
    assert "There is no baseline to compare with" in text
    runner.failing = set()
    assert len(rows(lead(seeds=2))) == 2
    assert "failed" not in Path("board/README.md").read_text()


def test_a_row_with_other_settings_replaces_the_earlier_until_these_come_back(
    lead: Lead, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    first = lead("SASRec")
    capsys.readouterr()
    assert lead("SASRec", learning_rate=0.5)["rows"] != first["rows"]
    said = capsys.readouterr().err
    assert "SASRec on amazon-toys has other settings now; its earlier runs leave the table" in said
    assert lead("SASRec")["rows"] == first["rows"] and len(runner.ran) == 2


def test_a_mix_asks_for_another_run_and_is_kept_with_its_ranks(lead: Lead, runner: Runner) -> None:
    lead("SASRec")
    mixed = lead("SASRec", mix="TransitionCounter")
    assert len(mixed["rows"]) == len(runner.ran) == 2
    assert len(list(Path("board/runs").glob("*.mix.npz"))) == 1
    lead("SASRec", mix="TransitionCounter")
    assert len(lead("SASRec")["rows"]) == 1 and len(runner.ran) == 2
    next(Path("board/runs").glob("*.mix.npz")).unlink()
    with pytest.raises(IdiomoeError, match=r"mix\.npz holds no ranks"):
        lead("SASRec", mix="TransitionCounter")


def test_another_text_asks_for_other_runs_of_language_models_alone(
    lead: Lead, runner: Runner
) -> None:
    for text in ("one", "two", "one"):
        Path("wiki.txt").write_text(text)
        lead(language_file="wiki.txt")
    assert runner.ran == [*BOTH, BOTH[1]]
    Path("wiki.txt").rename("elsewhere.txt")
    Path("place").mkdir()
    Path("elsewhere.txt").rename("place/wiki.txt")
    lead(language_file="place/wiki.txt")
    assert len(runner.ran) == 3


def test_variants_are_rows(lead: Lead, runner: Runner) -> None:
    variants = {"slow": {"model": "SASRec", "learning_rate": 0.5}, "plain": {"model": "SASRec"}}
    result = lead(variants=variants, seeds=2)
    assert {row["row"]: row["settings"] for row in result["rows"]} == {
        "slow": {"learning_rate": 0.5},
        "plain": {},
    }
    assert len(runner.ran) == 4
    lead("SASRec")  # of which a row has run already, under another name
    assert len(runner.ran) == 4


def test_other_candidates_fail_a_run(lead: Lead, runner: Runner) -> None:
    lead("SASRec")
    runner.candidates = "all 41 items"
    with pytest.raises(IdiomoeError, match=r"another protocol than 'IDIOMoE' \(candidates\)"):
        lead("IDIOMoE")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mask_seen": False}, r"another protocol than the amazon-toys asked for \(mask_seen\)"),
        ({"topk": [10]}, r"another protocol than the amazon-toys asked for \(topk\)"),
        ({"cold_start": 0.1}, "cold_start=0.1 gives a target another rank"),
        ({"mask_seen": False, "eval_args": {"mode": "uni100"}}, "ranks sampled candidates"),
        ({"valid_metric": "GAUC", "metrics": ["GAUC"]}, "GAUC does not follow from a target's"),
        ({"jobs": 0}, "jobs=0 must be"),
    ],
    ids=str,
)
def test_what_does_not_compare_is_one_line_and_changes_nothing(
    given: dict[str, Any], said: str, lead: Lead, runner: Runner
) -> None:
    lead("SASRec")
    before = {path: path.read_bytes() for path in Path("board").rglob("*") if path.is_file()}
    with pytest.raises(SettingError, match=said) as error:
        lead("SASRec,IDIOMoE", **given)
    assert "\n" not in str(error.value) and runner.ran == BOTH[:1]
    assert before == {
        path: path.read_bytes() for path in Path("board").rglob("*") if path.is_file()
    }


def test_other_data_are_refused(lead: Lead) -> None:
    write_dataset(Path("data/amazon-toys"), [("u", "i", 1.0)])
    lead("SASRec")
    Path("data/amazon-toys/amazon-toys.inter").write_text("other")
    with pytest.raises(SettingError, match=r"other data of amazon-toys \(amazon-toys.inter\)"):
        lead("SASRec")


def test_a_folder_of_something_else_is_refused(lead: Lead, runner: Runner) -> None:
    Path("board").mkdir()
    Path("board/notes.txt").write_text("mine")
    for content in (None, "[]", '{"version": 2}'):
        if content:
            Path("board/leaderboard.json").write_text(content)
        with pytest.raises(SettingError, match="leaderboard=board is no leaderboard"):
            lead()
        assert main(["board"]) == 2
    assert runner.ran == [] and not Path("board/runs").exists()


def test_two_at_once_are_refused(
    lead: Lead, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Beside(Runner):
        def __call__(self, plan: Any) -> Any:
            with pytest.raises(SettingError, match="board is being written by another process"):
                lead("GRU4Rec")
            return super().__call__(plan)

    monkeypatch.setattr(execution, "execute", Beside())
    assert len(rows(lead("SASRec"))) == 1


def test_runs_that_were_killed_start_over(tmp_path: Path) -> None:
    settings = TINY | {"data_path": str(write_cycle(tmp_path / "cycle")), "epochs": 3}
    models = ["SASRecCE", "SASRec"]
    arguments = {"models": models, "datasets": "cycle", "settings": settings}
    arguments |= {"leaderboard": "board"}
    straight = started(tmp_path / "straight", arguments)
    straight.join()
    assert straight.exitcode == 0
    kept = tmp_path / "killed" / "board" / "runs"
    broken = started(tmp_path / "killed", arguments)
    while not (first := list(kept.glob("*.json"))):
        assert broken.is_alive()
        time.sleep(0.01)
    broken.kill()
    broken.join()
    written = first[0].stat().st_mtime_ns
    again = started(tmp_path / "killed", arguments)
    again.join()
    assert again.exitcode == 0 and first[0].stat().st_mtime_ns == written
    results = [
        {
            result["model"]: (result["test_result"], result["learning_curve"])
            for file in (tmp_path / place / "board" / "runs").glob("*.json")
            for result in [json.loads(file.read_text())]
        }
        for place in ("straight", "killed")
    ]
    assert results[0] == results[1] and results[0].keys() == set(models)


@pytest.mark.parametrize("options", [{"result_file": "a.json"}, {"resume": "run"}], ids=str)
def test_a_leaderboard_has_its_own_files(options: dict[str, Any]) -> None:
    Path("run").mkdir()
    run = {"model": "SASRec", "dataset": "ml-100k", "settings": {}}
    Path("run/run.json").write_text(json.dumps(run))
    with pytest.raises(SettingError, match="leaderboard"):
        api.run("SASRec", "ml-100k", leaderboard="board", **options)
    assert not Path("board").exists()


def test_models_that_are_really_run_have_the_numbers_of_their_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_cycle(tmp_path / "data" / "cycle")
    small = {"n_layers": 1, "hidden_size": 16, "n_heads": 2}
    settings = TINY | small | {"data_path": str(data), "epochs": 1}
    (result,) = api.run("SASRec,IDIOMoE", "cycle", settings=settings, leaderboard="board")
    (alone,) = api.run("SASRec", "cycle", settings=settings)
    (row,) = (row for row in result["rows"] if row["row"] == "SASRec")
    assert row["test"] == alone["test_result"] and not row["ours"]
    (ours,) = (row for row in result["rows"] if row["row"] == "IDIOMoE")
    assert ours["ours"] and 0 < ours["p"] <= 1
    assert str(tmp_path) not in "".join(p.read_text() for p in Path("board/runs").glob("*.json"))
    capsys.readouterr()
    assert main(["board"]) == 0
    assert capsys.readouterr().out == result["table"] + "\n"
