"""The files of a search: reading and locking its trials, writing the best settings."""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import json
import os
import socket
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from recbole_idiomoe.base.errors import CheckpointError, SettingError, short_reason
from recbole_idiomoe.base.files import write_text

Trial = dict[str, Any]
"""``number`` from 1, ``settings`` that are searched, ``seconds``, and either ``valid`` (metrics),
``epochs``, ``data`` (counts) and ``device``, or ``failed`` (the reason)."""

# Settings that do not change a result, or that differ from machine to machine.
_NOT_COMPARED = {"given", "checkpoint_dir", "data_path", "gpu_id", "show_progress", "use_gpu"}


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Lock ``file`` against other searches inside the block, or until this process ends.

    The lock is on a second file that stays, since ``file`` itself is replaced at every trial.

    Raises:
        SettingError: another process holds the lock, or the second file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    path = file.with_suffix(".lock")
    try:
        lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115  closed below
    except OSError as error:
        raise SettingError(
            f"{path} cannot be written ({short_reason(error)}); remove it if its search has ended, "
            "or name another folder with --tuned."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise SettingError(
                f"{file} is being written by another search, {lock.read()}; wait for it, or name "
                "another folder with --tuned."
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def read_trials(file: Path, search: Mapping[str, Any]) -> list[Trial]:
    """Read the trials of ``search`` from ``file``; none if the file does not exist.

    Raises:
        CheckpointError: the file cannot be read.
        SettingError: the file has trials of another search.
    """
    if not file.exists():
        return []
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        trials: list[Trial] = kept["trials"]
        theirs, ours = ({**each, **each["settings"]} for each in (kept, search))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read as the trials of a search ({short_reason(error)}); remove it, "
            "or name another folder with --tuned."
        ) from error
    compared = (theirs.keys() | ours.keys()) - _NOT_COMPARED - {"settings", "trials"}
    differing = sorted(name for name in compared if theirs.get(name) != ours.get(name))
    if differing:
        raise SettingError(
            f"{file} has trials of another search ({', '.join(differing)}): they do not compare; "
            "give the same settings, or name another folder with --tuned."
        )
    return trials


def value_of(trial: Trial, search: Mapping[str, Any]) -> float | None:
    """A trial's ``valid_metric`` on validation; None if it failed."""
    return trial["valid"][search["valid_metric"].lower()] if "valid" in trial else None


def ranked(trials: Sequence[Trial], search: Mapping[str, Any]) -> list[Trial]:
    """The successful trials, best first, and of equal ones the earlier first."""
    sign = -1 if search["bigger_is_better"] else 1
    valued = [(value_of(trial, search), trial) for trial in trials]
    succeeded = [(sign * value, trial) for value, trial in valued if value is not None]
    return [trial for _, trial in sorted(succeeded, key=lambda pair: pair[0])]


def best_description(trials: Sequence[Trial]) -> str:
    """A description of the best of ``trials`` for tables and files."""
    count = len(trials)
    return f"the best of {count} trials" if count > 1 else "the only trial"


def write_best(file: Path, search: Mapping[str, Any], trials: Sequence[Trial], best: Trial) -> None:
    """Write the settings of ``best`` as YAML, with comments on their origin."""
    metric = search["valid_metric"]
    value, default = (f"{value_of(trial, search):.6f}" for trial in (best, trials[0]))
    failed = sum("failed" in trial for trial in trials)
    given = yaml.safe_dump(search["given"], default_flow_style=True, width=10**6).strip()
    said = [
        f"{search['model']} on {search['dataset']}: {best_description(trials)}"
        f"{f' ({failed} failed)' if failed else ''}, by {metric} on validation.",
        f"{metric} on validation: {value}, trial {best['number']}; default settings: {default}.",
        f"Seed {search['seed']}, of the runs and of the search (TPE of optuna "
        f"{importlib.metadata.version('optuna')}); {datetime.date.today().isoformat()}.",
        f"Not searched, because given: {given}",
        f"All trials: {file.with_suffix('.json').name}",
    ]
    lines = [line for part in said for line in textwrap.wrap(part, 96, subsequent_indent="  ")]
    settings = best["settings"]
    body = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else ""
    write_text(file, "".join(f"# {line}\n" for line in lines) + body)
