"""Running a grid: here, in processes, after a failure, and again from its file."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import IdiomoeError, SettingError
from recbole_idiomoe.data import location
from recbole_idiomoe.grid import running as grid_runs
from recbole_idiomoe.grid import worker as grid_cell
from recbole_idiomoe.grid.cells import Grid
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs import plan as plans
from recbole_idiomoe.runs.plan import RunPlan
from recbole_idiomoe.runs.result import RunResult
from tests.helpers import TINY_IDIOMOE, write_dataset
from tests.training.cycle import TINY, write_cycle

ROWS: dict[str, Any] = {
    "SASRec": {"model": "SASRec", "n_layers": 1, "hidden_size": 16, "n_heads": 2},
    "half": {"expert_width": 0.5},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle")


@pytest.fixture(scope="module")
def here(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two rows and two seeds, one after another in this process."""
    place = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (result,) = api.run(settings=given(data, seeds=2), datasets="cycle")
        assert not list(Path("saved").iterdir())
    return result


def given(data: Path, **more: Any) -> dict[str, Any]:
    return TINY | {"data_path": str(data), "epochs": 1, "variants": ROWS} | more


def metrics(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["valid"], run["test"], run["epochs"], run["parameters"]


def test_a_grid_says_what_was_run(here: dict[str, Any], data: Path) -> None:
    assert (here["dataset"], here["baseline"], here["seeds"]) == (["cycle"], "SASRec", 2)
    assert here["variants"] == {"SASRec": ROWS["SASRec"], "half": ROWS["half"] | MODEL}
    assert here["settings"] == TINY | {"data_path": str(data), "epochs": 1}
    assert here["protocol"]["cycle"]["candidates"] == "all 40 items"
    assert here["device"].startswith("CPU") and here["versions"]["recbole"] == "1.2.1"
    assert [(run["variant"], run["seed"]) for run in here["runs"]] == [
        ("SASRec", 2020), ("SASRec", 2021), ("half", 2020), ("half", 2021),
    ]  # fmt: skip
    for run in here["runs"]:
        assert run["dataset"] == "cycle" and run["seconds"] > 0 and run["epochs"] == 1
        assert set(run["test"]) == {f"{m}@{k}" for m in ("hit", "ndcg", "mrr") for k in (1, 5, 10)}
    assert here["runs"][0]["test"] != here["runs"][1]["test"]
    assert json.loads(json.dumps(here)) == here


def test_a_grid_keeps_the_mixes_of_its_runs(here: dict[str, Any], data: Path) -> None:
    settings = given(data, seeds=2, mix="TransitionCounter", variants={"SASRec": ROWS["SASRec"]})
    (mixed,) = api.run(settings=settings, datasets="cycle", result_file="mixed.json")
    for run, alone in zip(mixed["runs"], here["runs"], strict=False):
        assert metrics(run) == metrics(alone)
        assert set(run["mix"]) == {"with", "weight", "valid", "test"}
        assert set(run["mix"]["test"]) == set(run["test"])
    assert json.loads(Path("mixed.json").read_text()) == mixed


MODEL = {"model": "IDIOMoE"}


@pytest.mark.parametrize("dataset", ["ml-1m", "amazon-toys"])
def test_a_run_is_known_again_whose_data_the_first_command_downloaded(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, root: Path) -> None:
        write_dataset(root / name, [("u", "i", 1.0)])

    monkeypatch.setattr(location, "_download", download)
    grid, settings = Grid({"a": {"model": "SASRec"}}, "a", 1), {"data_path": str(tmp_path)}
    (first,), (again,) = (
        grid_runs.cells_with_data(grid, [dataset], [], settings) for _ in range(2)
    )
    assert first.key == again.key and len(first.files) == 1


def test_a_run_of_a_grid_is_the_run_alone(here: dict[str, Any], data: Path) -> None:
    settings = TINY | {"data_path": str(data), "epochs": 1, "seed": 2021, "expert_width": 0.5}
    (alone,) = api.run("IDIOMoE", "cycle", settings=settings)
    run = here["runs"][3]
    assert (run["test"], run["valid"]) == (alone["test_result"], alone["best_valid_result"])
    assert run["parameters"] == alone["parameters"]


def test_processes_give_the_same_metrics_and_leave_nothing(
    here: dict[str, Any], data: Path
) -> None:
    result_file = Path("new folder") / "grid.json"
    (result,) = api.run(datasets="cycle", settings=given(data), jobs=2, result_file=result_file)
    assert [metrics(run) for run in result["runs"]] == [
        metrics(run) for run in here["runs"] if run["seed"] == 2020
    ]
    assert not any("seconds" in run for run in result["runs"])
    assert json.loads(result_file.read_text()) == result
    assert not list(Path("saved").iterdir())
    assert [path.name for path in result_file.parent.iterdir()] == ["grid.json"]


def test_a_result_file_repeats_its_grid(here: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "grid.json"
    file.write_text(json.dumps(here))
    (again,) = api.run(config_files=[file])
    assert [metrics(run) for run in again["runs"]] == [metrics(run) for run in here["runs"]]
    assert {k: v for k, v in again.items() if k != "runs"} == {
        k: v for k, v in here.items() if k != "runs"
    }


@pytest.mark.parametrize("fault", [IdiomoeError("no luck"), MemoryError("first\nno luck")])
def test_the_same_call_goes_on_after_a_failure(
    fault: Exception,
    here: dict[str, Any],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran = []
    execute = execution.execute

    def counted(plan: Any) -> Any:
        ran.append(plan.config["model"])
        return execute(plan)

    def failing(plan: Any) -> Any:
        if plan.config["model"] == "SASRec":
            raise fault
        return counted(plan)

    settings = given(data)
    with monkeypatch.context() as patch:
        patch.setattr(execution, "execute", failing)
        with pytest.raises(IdiomoeError) as error:
            api.run(datasets="cycle", settings=settings, result_file="grid.json")
    said = str(error.value)
    assert "1 of 2 runs failed: SASRec on cycle, seed 2020: " in said and "no luck" in said
    assert "luck. What has run is in grid.json.runs" in said and "\n" not in said
    assert ran == ["IDIOMoE"] and not Path("grid.json").exists()
    assert "run 2 of 2, half on cycle, seed 2020\n" in capsys.readouterr().err

    monkeypatch.setattr(execution, "execute", counted)
    (result,) = api.run(datasets="cycle", settings=settings, result_file="grid.json")
    assert ran == ["IDIOMoE", "SASRec"]
    assert [metrics(run) for run in result["runs"]] == [metrics(run) for run in here["runs"][::2]]
    assert Path("grid.json").exists() and not Path("grid.json.runs").exists()


@pytest.mark.slow
def test_a_failure_in_a_process_is_named_and_its_log_kept(data: Path) -> None:
    rows = {"one": {}, "two": {"backbone": "no/such/folder"}}
    settings = given(data, variants=rows)
    with pytest.raises(IdiomoeError) as error:
        api.run(datasets="cycle", settings=settings, jobs=2, result_file="grid.json")
    said = str(error.value)
    assert "1 of 2 runs failed: two on cycle, seed 2020: " in said and "no/such/folder" in said
    assert "\n" not in said
    kept = sorted(path.suffix for path in Path("grid.json.runs").iterdir())
    assert kept == [".json", ".log"]
    assert not list(Path("saved").iterdir())


def test_other_settings_do_not_find_what_is_kept(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def failing(plan: Any) -> Any:
        ran.append(plan.config["epochs"])
        raise IdiomoeError("stopped")

    Path("grid.json.runs").mkdir()
    settings = given(data, variants={"half": ROWS["half"]})
    (result,) = api.run(datasets="cycle", settings=settings, result_file="a.json")
    monkeypatch.setattr(execution, "execute", failing)
    with pytest.raises(IdiomoeError, match="stopped"):
        api.run(datasets="cycle", settings=settings | {"epochs": 2}, result_file="a.json")
    assert ran == [2]
    assert json.loads(Path("a.json").read_text()) == result  # The earlier table stays.


def test_a_run_in_two_rows_is_run_once(data: Path) -> None:
    rows = {"wide": {"expert_width": 1.0}, "default": {}}
    (result,) = api.run(datasets="cycle", settings=given(data, variants=rows))
    wide, default = result["runs"]
    assert wide | {"variant": "default"} == default


def test_seeds_alone_repeat_every_model_on_every_data_set(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(plan: RunPlan) -> RunResult:
        config = plan.config
        return RunResult(
            config["model"], config["dataset"], seed=config["seed"], test_result={"ndcg@10": 0.5},
            epochs=1, parameters={"total": 1}, train_seconds=1.0, device="CPU",
        )  # fmt: skip

    monkeypatch.setattr(execution, "execute", execute)
    monkeypatch.setattr(plans, "find_data", lambda config: None)
    monkeypatch.setattr(grid_runs, "locate", lambda config: None)
    (result,) = api.run("SASRec,IDIOMoE", "ml-100k,amazon-toys", settings={"seeds": 3})
    assert result["variants"] == {"SASRec": {"model": "SASRec"}, "IDIOMoE": MODEL}
    assert result["dataset"] == ["ml-100k", "amazon-toys"] and len(result["runs"]) == 12


@pytest.mark.parametrize(
    ("result_file", "told"),
    [(None, "with --result_file runs are kept"), ("all.json", "the same command goes on")],
)
def test_an_interruption_ends_the_processes(
    result_file: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(*_: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grid_runs, "_start", start)
    monkeypatch.setattr(time, "sleep", interrupted)
    settings = TINY_IDIOMOE | {"seeds": 5}
    with pytest.raises(KeyboardInterrupt, match=f"^interrupted; {told}$"):
        api.run(settings=settings, jobs=2, result_file=result_file)
    assert len(started) == 2 and all(process.returncode for process in started)
    assert not list(Path("saved").iterdir())


def test_a_process_whose_grid_was_killed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([7, 7, 1])
    monkeypatch.setattr(grid_cell, "_WATCH_S", 0)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        grid_cell._end_with(7)
    assert ended.value.code == 1 and not list(parents)


@pytest.mark.parametrize("given", [{}, {"gpu_id": ""}], ids=["in turn", "as asked"])
def test_each_process_sees_one_gpu(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Ended:
        returncode = 1

        def __init__(self, *_: Any, env: dict[str, str], **__: Any) -> None:
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def poll(self) -> int:
            return 1

    monkeypatch.setattr(subprocess, "Popen", Ended)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    # Where nobody chose the CPU, a machine without GPUs does.
    settings = {k: v for k, v in TINY_IDIOMOE.items() if k != "gpu_id"} | {"seeds": 3} | given
    with pytest.raises(IdiomoeError, match="3 of 3 runs failed"):
        api.run(settings=settings, jobs=2)
    assert seen == (["2,5"] * 3 if given else ["2", "5", "2"])


def test_a_gpu_that_is_free_again_is_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Running:
        """The first run is the longest."""

        returncode = 1

        def __init__(self) -> None:
            self.left = 10 if len(seen) == 1 else 1

        def poll(self) -> int | None:
            self.left -= 1
            return None if self.left > 0 else 1

    def start(cell: Any, jobs: int, gpu: str, folder: Path, log: Path, _: Any) -> Running:
        seen.append(gpu)
        folder.mkdir()
        log.touch()
        return Running()

    monkeypatch.setattr(grid_runs, "_start", start)
    monkeypatch.setattr(grid_runs, "_POLL_S", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with pytest.raises(IdiomoeError, match="4 of 4 runs failed"):
        api.run(settings=TINY_IDIOMOE | {"seeds": 4}, jobs=2)
    assert seen == ["2", "5", "5", "5"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jobs": 2}, "jobs=2 is for tables"),
        ({"jobs": 0, "settings": {"seeds": 2}}, "jobs=0 must be how many"),
        ({"jobs": "2", "settings": {"seeds": 2}}, "jobs='2' must be how many"),
        ({"settings": {"variants": {}}}, "must be a mapping"),
        ({"settings": {"variants": ROWS, "baseline": "x"}}, "none of the rows"),
        ({"models": "A,B", "settings": {"variants": {"a": {}}}}, "names no model"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_written(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError, match=said):
        api.run(**options)
    assert not list(Path().iterdir())


def test_a_grid_is_not_resumed_by_a_folder(tmp_path: Path) -> None:
    run = {"model": "IDIOMoE", "dataset": "ml-100k", "settings": {}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(SettingError, match="resume goes on with one run"):
        api.run(settings={"seeds": 2}, resume=tmp_path)
