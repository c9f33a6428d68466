"""Whatever befalls one process ends them all, soon, and in one line that says what it was."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recbole_idiomoe.training.loss_watch import FILE_NAME
from tests.distributed.ranks import Ranks, command, runs, started
from tests.training.cycle import TINY, write_cycle

ROOT = Path(__file__).parents[2]
SETTINGS = TINY | {"epochs": 2, "train_batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle", users=40)


def words(data: Path, *more: str) -> list[str]:
    """A command line."""
    settings = SETTINGS | {"data_path": str(data)}
    (data / "settings.yaml").write_text(yaml.safe_dump(settings))
    return [f"--config_files={data / 'settings.yaml'}", "--dataset=cycle", *more]


def complaints(ranks: Ranks) -> list[str]:
    """What the processes say after 'error: '."""
    said = "".join(ranks.said(rank) for rank in range(2))
    return [line.partition("error: ")[2] for line in said.splitlines() if "error: " in line]


def test_settings_that_differ_are_refused_at_the_start(data: Path, tmp_path: Path) -> None:
    lines = words(data), words(data, "--learning_rate=0.5")
    ranks = started(2, tmp_path, command, lines)
    assert ranks.wait() == [2, 2]
    [line] = complaints(ranks)
    assert line.startswith("rank 1 has learning_rate=0.5, rank 0 has 0.01: start all processes")
    assert not (tmp_path / "saved").exists()


def test_catalogues_that_differ_are_refused(data: Path, tmp_path: Path) -> None:
    # As on two machines, each with a file of its own.
    ranks = started(2, tmp_path, _with_own_titles, words(data))
    assert ranks.wait() == [2, 2]
    [line] = complaints(ranks)
    assert line.startswith("rank 1 has catalogue=")


def _with_own_titles(line: list[str]) -> int:
    from recbole_idiomoe.runs import execution as one_run

    original = one_run.read_catalog

    def read_catalog(*args: Any) -> Any:
        catalog = original(*args)
        catalog.texts[1] += os.environ["RANK"]
        return catalog

    one_run.read_catalog = read_catalog
    return command([line, line])


def test_an_error_of_all_is_said_once_and_tables_are_refused(data: Path, tmp_path: Path) -> None:
    ranks = started(2, tmp_path, command, [words(data, "--seeds=2")] * 2)
    assert ranks.wait() == [2, 2]
    [line] = complaints(ranks)
    assert line.startswith("a table (variants, seeds, leaderboard, jobs) is run by one process")


@contextmanager
def third_batch(happening: Any) -> Iterator[None]:
    """``happening()`` comes in the third backward pass of rank 1, or soon after."""
    from recbole_idiomoe.training.trainer import IdiomoeTrainer

    original, calls = IdiomoeTrainer._backward, 0

    def backward(self: Any, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls >= 3 and len(batch.input_ids) > 1 and os.environ["RANK"] == "1":
            happening()
        return original(self, batch)

    IdiomoeTrainer._backward = backward  # type: ignore[method-assign]
    yield
    IdiomoeTrainer._backward = original  # type: ignore[method-assign]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def _train_until(happening: Any, line: list[str]) -> int:
    with third_batch(happening):
        return command([line, line])


def test_a_process_that_dies_is_noticed_without_a_launcher(data: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    ranks = started(2, tmp_path, _train_until, _die, words(data))
    assert ranks.wait() == [1, -signal.SIGKILL]
    assert time.monotonic() - start < 30
    last = ranks.said(0).strip().splitlines()[-1]
    assert last == "rank 0 stops: another process of the run is gone, and says why."


def test_memory_that_one_process_lacks_is_one_line(data: Path, tmp_path: Path) -> None:
    ranks = started(2, tmp_path, _train_until, _run_out_of_memory, words(data))
    assert ranks.wait() == [1, 2]
    [line] = complaints(ranks)
    assert "too large for the memory of rank 1" in line and "--max_batch_tokens=" in line


def _with_a_nan(line: list[str]) -> int:
    from recbole_idiomoe.models.language.catalog_lm import CatalogLM

    original = CatalogLM.loss
    calls = 0

    def loss(self: Any, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        bad = calls == 3 and os.environ["RANK"] == "1"
        return original(self, batch) * (torch.nan if bad else 1)

    CatalogLM.loss = loss  # type: ignore[method-assign]
    return command([line, line])


def test_a_loss_that_is_no_number_in_one_process_stops_all(data: Path, tmp_path: Path) -> None:
    ranks = started(2, tmp_path, _with_a_nan, words(data))
    assert ranks.wait() == [2, 2]
    [line] = complaints(ranks)
    assert line.startswith("the training loss became nan in epoch 0")
    [file] = (tmp_path / "saved").glob(f"*/{FILE_NAME}")
    content = json.loads(file.read_text())
    assert len(content["users"]) == len(content["users_before"]) == 8  # of the whole step


def test_a_model_without_our_trainer_runs_on_one_process(data: Path, tmp_path: Path) -> None:
    small = {"hidden_size": 16, "inner_size": 16, "data_path": str(data), "epochs": 2}
    asked = {"models": "SASRec,TIGER,IDIOMoE", "datasets": "cycle"}
    settings = SETTINGS | small | {"semantic_codebook_size": 4}
    ranks = started(2, tmp_path, _results, asked | {"settings": settings})
    first, second = ranks.given()
    assert first[:2] == second[:2]  # handed on
    one = started(1, tmp_path / "one", runs, asked | {"models": "SASRec", "settings": settings})
    assert first[0]["test_result"] == one.given()[0][0]["test_result"]
    assert len(list((tmp_path / "saved").iterdir())) == 3
    assert "SASRec trains in one process: rank 0 runs it, 1 wait" in ranks.said(0)
    assert "INFO" in ranks.said(0) and "INFO" not in ranks.said(1)


def _results(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    from recbole_idiomoe.api import run

    return run(**arguments)


SCRIPT = str(ROOT / "run_recbole_idiomoe.py")
environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "code"), [("--multi_gpu", 0), ("--use_fsdp", 1)], ids=["by itself", "as FSDP"]
)
def test_accelerate_launches_too(option: str, code: int, data: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "accelerate.commands.launch", option, "--num_processes=2"]
    line += ["--num_machines=1", SCRIPT, *words(data, "--result_file=result.json")]
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "error: accelerate launch is told to use FSDP" in done.stderr
    else:
        assert '"device": "2 x ' in (tmp_path / "result.json").read_text()


def test_torchrun_ends_when_a_process_is_killed(data: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    line += [SCRIPT, *words(data, "--epochs=1000")]
    with open(tmp_path / "said", "w") as said:
        launcher = subprocess.Popen(
            line, cwd=tmp_path, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        while not list(tmp_path.glob("saved/*/training_state.pt")):
            assert launcher.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        killed = time.monotonic()
        assert launcher.wait(timeout=60) != 0
        assert time.monotonic() - killed < 30
    finally:
        launcher.kill()
    assert "Signal 9 (SIGKILL)" in (tmp_path / "said").read_text()
    [folder] = tmp_path.glob("saved/*")
    epochs = torch.load(folder / "training_state.pt", weights_only=True)["epoch"] + 2
    asked = {"resume": folder, "settings": {"epochs": epochs}}
    assert started(1, tmp_path, runs, asked).given()[0][0]["epochs"] == epochs
