"""Run models on datasets: what the command line and a notebook call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from recbole_idiomoe.base import distributed, yaml_files
from recbole_idiomoe.base.command_line import resume_hint
from recbole_idiomoe.base.environment import versions
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.files import unwritable_reason
from recbole_idiomoe.base.run_folder import RUN_FILE, read_run
from recbole_idiomoe.grid.cells import Grid, read_grid
from recbole_idiomoe.grid.running import run_grid
from recbole_idiomoe.leaderboard.running import run_leaderboard
from recbole_idiomoe.models.registration import register_model
from recbole_idiomoe.report.result_files import check_writable, write_result
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs.plan import plan
from recbole_idiomoe.runs.request import RunRequest, names_of

__all__ = ["register_model", "run"]


def run(
    models: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    result_file: str | Path | None = None,
    resume: str | Path | None = None,
    leaderboard: str | Path | None = None,
    jobs: int = 1,
) -> list[dict[str, Any]]:
    """Train and test every model on every dataset, one after another, under one protocol.

    With ``variants`` (a mapping from the name of a row to its settings) or ``seeds`` (a number) in
    the settings or files, the runs make one table, with means over the seeds and differences in %
    from the row called ``baseline``. A row's settings win over all others.

    Under torchrun or ``accelerate launch``, every process makes the same call: language models
    train and are evaluated on all of them, other models on rank 0 while the others wait. Tables
    and leaderboards run in one process.

    Args:
        models: names, as a list or separated by commas; None: the ``model`` of ``config_files``,
            or else IDIOMoE.
        datasets: names, as a list or separated by commas; None: the ``dataset`` of
            ``config_files``, or else ml-100k.
        config_files: YAML files, or result files of earlier runs; later files win.
        settings: settings by name, which win over the files.
        result_file: the JSON file to write the results to, after every run. The file of a table is
            written when all its runs have finished; until then they are kept beside it.
        resume: the folder of an unfinished run to resume, with its model and dataset.
        leaderboard: the folder of a leaderboard, which is created if it is missing. Runs that it
            lacks are run and kept there, and its tables are written again.
        jobs: how many runs of a table run at the same time; more than one run in processes of
            their own.

    Returns:
        One result per run, with its protocol, metrics, costs and complete settings; or the one
        result of a table, with the comparison of its ``runs``; or the one result of a leaderboard,
        with its ``rows``.

    Raises:
        IdiomoeError: a setting, a file or the machine does not allow the run, or the run failed;
            the message is one line.
    """
    distributed.start()
    if result_file is not None and distributed.is_main():
        check_writable(result_file)
    settings = settings or {}
    folder = Path(resume) if resume is not None else None
    if folder is not None:
        models, datasets, config_files, settings = _resumed(folder, config_files, settings)
    layers = yaml_files.read_layers(config_files)
    names, labels = names_of(models, datasets, layers)
    layers.append(dict(settings))
    given = {key: value for layer in layers for key, value in layer.items()}
    given |= {"model": names, "dataset": labels, "resume": resume and str(resume)}
    distributed.check_alike(given | versions())
    grid = read_grid(names, layers)
    if grid or leaderboard or jobs != 1:
        distributed.refuse("a table (variants, seeds, leaderboard, jobs)")
        if resume is not None:
            raise SettingError(
                "resume goes on with one run; leave variants, seeds, leaderboard and jobs out."
            )
    if leaderboard is not None:
        if result_file is not None:
            raise SettingError("leaderboard has files of its own; leave result_file out.")
        rows = grid or Grid({name: {"model": name} for name in names}, names[0], 1)
        with resume_hint("the same command goes on"):
            return [
                run_leaderboard(rows, labels, config_files, settings, folder=leaderboard, jobs=jobs)
            ]
    if grid:
        again = "the same command goes on" if result_file else "with --result_file runs are kept"
        with resume_hint(again):
            return [
                run_grid(grid, labels, config_files, settings, jobs=jobs, result_file=result_file)
            ]
    if jobs != 1:
        raise SettingError(f"jobs={jobs!r} is for tables of variants or seeds; leave it out.")
    plans = [
        plan(RunRequest(name, label, config_files, settings, beside=names, resume=folder))
        for label, name in product(labels, names)
    ]
    results = []
    for planned in plans:
        results.append(execution.execute(planned).to_json())
        if result_file is not None and distributed.is_main():
            write_result(result_file, results)
    return results


def _resumed(
    folder: Path, config_files: Sequence[str | Path], settings: Mapping[str, Any]
) -> tuple[str, str, list[str | Path], dict[str, Any]]:
    """Model, data set, files and settings to resume the run in ``folder``.

    Raises:
        CheckpointError: it is not the folder of a run.
        SettingError: the folder cannot be written.
    """
    earlier = read_run(folder)
    if distributed.is_main() and (reason := unwritable_reason(folder)):
        raise SettingError(
            f"resume={folder} cannot be written ({reason}); go on with a copy of it."
        )
    # A folder must not allow remote code; whoever resumes the run must allow it again.
    settings = {"trust_remote_code": False, **settings}
    return earlier["model"], earlier["dataset"], [folder / RUN_FILE, *config_files], settings
