"""Running the cells of a grid, one after another or in several processes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_idiomoe.base.errors import DataError, IdiomoeError, SettingError, error_line
from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.base.run_folder import new_folder
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.location import locate
from recbole_idiomoe.grid.cells import Cell, Grid, cells_of, files_of, grid_result, shared_settings
from recbole_idiomoe.models import registration
from recbole_idiomoe.report.result_files import write_result
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs.plan import plan
from recbole_idiomoe.runs.request import RunRequest
from recbole_idiomoe.training.loss_watch import FILE_NAME, users_kept

TASK, RESULT = "task.json", "result.json"
"""The files in a run's folder that :mod:`recbole_idiomoe.grid.worker` reads and writes."""

_POLL_S = 0.2


@dataclass(frozen=True)
class Failure:
    """A run without a result."""

    reason: str
    """Its error message or the last line of its log, without a full stop."""


Outcomes = Generator[tuple[Cell, dict[str, Any] | Failure]]


def run_grid(
    grid: Grid,
    datasets: Sequence[str],
    config_files: Sequence[str | Path],
    settings: Mapping[str, Any] | None,
    *,
    jobs: int = 1,
    result_file: str | Path | None = None,
) -> dict[str, Any]:
    """Run all cells of ``grid`` and return one result.

    Finished runs are kept in ``<result_file>.runs`` until all are finished, so that the same call
    resumes after a failure. Checkpoints are not kept.

    Args:
        grid: the rows and the number of seeds.
        datasets: names of the data sets that each row runs on.
        config_files: YAML files or result files, for all rows.
        settings: settings for all rows; they override the files.
        jobs: number of runs at a time; if more than one, each has its own process.
        result_file: the file of the result; None: the result is not written and no run is kept.

    Raises:
        IdiomoeError: the grid cannot be run; or some runs failed, after all others have finished.
    """
    cells = cells_with_data(grid, datasets, config_files, settings, jobs)
    kept = Path(f"{result_file}.runs") if result_file is not None else None
    runs = _run_cells(cells, jobs, kept)
    result = grid_result(grid, shared_settings(config_files, settings), runs)
    if result_file is not None:
        write_result(result_file, [result])
        shutil.rmtree(f"{result_file}.runs")
    return result


def cells_with_data(
    grid: Grid,
    datasets: Sequence[str],
    config_files: Sequence[str | Path],
    settings: Mapping[str, Any] | None,
    jobs: int = 1,
) -> list[Cell]:
    """:func:`cells_of` after missing data sets are downloaded, since cells depend on the files.

    Several processes could not download the same files at once.

    Raises:
        SettingError: ``jobs`` is not a number of runs, another process cannot import a model of
            ``grid``, or :func:`cells_of` raises it.
    """
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise SettingError(f"jobs={jobs!r} must be how many runs go on at a time, at least 1.")
    if jobs > 1:
        registration.places_of(row["model"] for row in grid.variants.values())
    cells = cells_of(grid, datasets, config_files, settings)
    has_come = False
    for cell in {cell.dataset: cell for cell in cells}.values():
        config = RunConfig(cell.model, cell.dataset, settings=cell.settings)
        with suppress(DataError):  # the runs on this data set will report it
            locate(config)
        has_come = has_come or files_of(config) != cell.files
    return cells_of(grid, datasets, config_files, settings) if has_come else cells


@contextmanager
def outcomes_of(cells: Sequence[Cell], jobs: int, logs: Path | None) -> Iterator[Outcomes]:
    """Run ``cells``, in this process if ``jobs`` is 1, and yield a generator of their outcomes.

    Runs write into a temporary folder under ``checkpoint_dir``. The folder of a run exists until
    the next outcome is asked for. At the end of the block, processes that still run are ended.

    Args:
        logs: the folder for the log of a process that failed, and for the users of a training
            step whose loss was not finite; None: they are not kept.
    """
    scratch = new_folder(Path(cells[0].settings["checkpoint_dir"]), "grid")
    scratch.mkdir(parents=True)
    try:
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
        if jobs == 1:
            outcomes = _run_here(cells, scratch, logs)
        else:
            outcomes = _run_in_processes(cells, jobs, scratch, logs)
        with closing(outcomes):
            yield outcomes
    finally:
        shutil.rmtree(scratch)


def _run_cells(cells: Sequence[Cell], jobs: int, kept: Path | None) -> list[dict[str, Any]]:
    """The runs of all cells: those in ``kept``, then the others, which are written there."""
    files = {cell.key: kept / f"{cell.key}.json" for cell in cells} if kept else {}
    runs = {key: file.read_text(encoding="utf-8") for key, file in files.items() if file.exists()}
    left = {cell.key: cell for cell in cells if cell.key not in runs}  # rows can share a run
    count, failures = len(runs) + len(left), []
    if left:
        with outcomes_of([*left.values()], jobs, kept) as outcomes:
            for number, (cell, outcome) in enumerate(outcomes, start=count - len(left) + 1):
                said = ""
                if isinstance(outcome, Failure):
                    failures.append(f"{cell}: {outcome.reason}")
                    said = f" failed: {outcome.reason}"
                else:
                    runs[cell.key] = json.dumps(_compared(outcome, timed=jobs == 1), indent=1)
                    if kept:
                        write_text(files[cell.key], runs[cell.key])
                print(f"run {number} of {count}, {cell}{said}", file=sys.stderr, flush=True)
    if failures:
        others = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        again = f" What has run is in {kept}; the same command goes on." if kept else ""
        raise IdiomoeError(
            f"{len(failures)} of {count} runs failed{others and ', the first'}: "
            f"{failures[0]}{others and ';' + others}.{again}"
        )
    return [{"variant": cell.variant, **json.loads(runs[cell.key])} for cell in cells]


def _compared(result: Mapping[str, Any], timed: bool) -> dict[str, Any]:
    """The parts of a result that a table needs, with its time only if it ran alone."""
    run = {
        "dataset": result["dataset"],
        "seed": result["seed"],
        "valid": result["best_valid_result"],
        "test": result["test_result"],
    }
    run |= {part: result[part] for part in ("epochs", "parameters")}
    run |= {part: result[part] for part in ("cold_start", "language", "trained") if part in result}
    if mix := result.get("mix"):
        measured = {"valid": mix["best_valid_result"], "test": mix["test_result"]}
        run["mix"] = {"with": mix["with"], "weight": mix["weight"], **measured}
    if timed:
        run["seconds"] = result["train_seconds"]
    return run | {part: result[part] for part in ("protocol", "device", "versions")}


def _users_file(cell: Cell, logs: Path | None) -> Path | None:
    """The file for the users of a training step whose loss is not finite."""
    return logs / f"{cell.key}.{FILE_NAME}" if logs else None


def _run_here(cells: Sequence[Cell], scratch: Path, logs: Path | None) -> Outcomes:
    for cell in cells:
        folder = scratch / cell.key
        outcome: dict[str, Any] | Failure
        try:
            settings = {**cell.settings, "checkpoint_dir": str(folder)}
            with users_kept(_users_file(cell, logs)):
                request = RunRequest(cell.model, cell.dataset, settings=settings)
                outcome = execution.execute(plan(request)).to_json()
        except Exception as error:  # the other runs go on, whatever ends this one
            if not isinstance(error, IdiomoeError):
                logging.getLogger().exception(f"{cell} failed")
            outcome = Failure(error_line(error).removesuffix("."))
        yield cell, outcome
        shutil.rmtree(folder, ignore_errors=True)


def _run_in_processes(
    cells: Sequence[Cell], jobs: int, scratch: Path, logs: Path | None
) -> Outcomes:
    waiting = deque(cells)
    running: dict[subprocess.Popen[bytes], tuple[Cell, str]] = {}
    every_gpu = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or every_gpu).split(",")
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                log = (logs or scratch) / f"{cell.key}.log"
                # The GPU with the fewest runs: in turn, long runs could meet on one of them.
                gpu = min(gpus, key=[taken for _, taken in running.values()].count)
                users_file = _users_file(cell, logs)
                process = _start(cell, jobs, gpu, scratch / cell.key, log, users_file)
                running[process] = cell, gpu
            time.sleep(_POLL_S)
            for process in [process for process in running if process.poll() is not None]:
                cell, _ = running.pop(process)
                log = (logs or scratch) / f"{cell.key}.log"
                yield cell, _outcome(process.returncode, scratch / cell.key / RESULT, log)
                shutil.rmtree(scratch / cell.key)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _start(
    cell: Cell, jobs: int, gpu: str, folder: Path, log: Path, users_file: Path | None
) -> subprocess.Popen[bytes]:
    """Start :mod:`recbole_idiomoe.grid.worker` on one GPU and a share of the cores."""
    settings = {**cell.settings, "checkpoint_dir": str(folder), "show_progress": False}
    task = {
        "request": {"model": cell.model, "dataset": cell.dataset, "settings": settings},
        "path": sys.path,
        "models": registration.places_of([cell.model]),
        "parent": os.getpid(),
        "users_file": str(users_file) if users_file else None,
    }
    write_text(folder / TASK, json.dumps(task))
    ours = str(Path(__file__).parents[2])  # the package may not be installed
    path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    threads = str(max(1, torch.get_num_threads() // jobs))
    chosen = {} if "gpu_id" in cell.settings else {"CUDA_VISIBLE_DEVICES": gpu}
    with open(log, "wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "recbole_idiomoe.grid.worker", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": path} | chosen,
        )


def _outcome(code: int, result: Path, log: Path) -> dict[str, Any] | Failure:
    if code == 0:
        log.unlink()
        read: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return read
    if code < 0:
        return Failure(f"ended by signal {-code}")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return Failure(lines[-1].removesuffix(".") if lines else f"ended with exit code {code}")
