"""Tuning: runs trials one after another, keeps each of them, and writes the best settings.

A trial is a run up to its best epoch on validation; it never evaluates the test split.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_idiomoe.base import distributed, yaml_files
from recbole_idiomoe.base.command_line import resume_hint
from recbole_idiomoe.base.errors import (
    BackboneError,
    DataError,
    MissingLibraryError,
    SettingError,
    error_line,
)
from recbole_idiomoe.base.files import unwritable_reason, write_text
from recbole_idiomoe.base.run_folder import new_folder
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.grid.cells import read_grid
from recbole_idiomoe.protocol.description import protocol
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs.plan import plan
from recbole_idiomoe.runs.request import RunRequest, names_of
from recbole_idiomoe.training.loss_watch import FILE_NAME, users_kept
from recbole_idiomoe.tuning.space import load_optuna, propose, read_search_space
from recbole_idiomoe.tuning.trials import Trial, locked, ranked, read_trials, value_of, write_best

_MOST_TRIALS = 10_000


def tune(
    models: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    trials: int,
) -> list[dict[str, Any]]:
    """Search the settings of every model on every data set, with the same number of trials.

    The first trial has the model's default settings; TPE proposes the others from the
    ``search_space`` (see ``properties/model/``). Settings that are given are not searched. The
    best value of ``valid_metric`` on validation wins, and of equal ones the earliest.

    The setting ``tuned`` names the folder of the results (default: ``tuned``).
    ``MODEL_DATASET.json`` there keeps every trial, so that the same call resumes the search;
    ``MODEL_DATASET.yaml`` has the best settings, for ``tuned`` or ``config_files`` of a run.

    Args:
        models: names of models, as in :func:`recbole_idiomoe.api.run`.
        datasets: names of data sets, as in :func:`recbole_idiomoe.api.run`.
        config_files: files with settings for all models, which may have a ``search_space``.
        settings: settings for all models; they override ``config_files``.
        trials: number of trials for each model on each data set, the first one included. A model
            with an empty search space has only the first.

    Returns:
        An entry for each model and data set: the content of its JSON file with up to ``trials``
        trials, the ``best`` of them, and the ``file`` with its settings.

    Raises:
        IdiomoeError: the settings cannot be searched, another process searches into the same
            file, or the first trial failed. Other failed trials are kept with their reason.
    """
    if not isinstance(trials, int) or isinstance(trials, bool) or not 1 <= trials <= _MOST_TRIALS:
        raise SettingError(
            f"tune={trials!r} must be how many trials each model has, a whole number from 1 to "
            f"{_MOST_TRIALS}."
        )
    distributed.start()
    distributed.refuse("a search (tune)")
    load_optuna()  # before hours of trials
    layers = [*yaml_files.read_layers(config_files), settings or {}]
    names, labels = names_of(models, datasets, layers[:-1])
    if read_grid(names, layers) is not None:
        raise SettingError("a search is of one row; leave variants, seeds and baseline out.")
    folder = next((layer["tuned"] for layer in reversed(layers) if layer.get("tuned")), "tuned")
    if not isinstance(folder, str | Path):
        raise SettingError(f"tuned={folder!r} must name a folder.")
    if reason := unwritable_reason(Path(folder)):
        raise SettingError(f"tuned={folder} cannot be written ({reason}); name another.")
    # This search writes to the folder: its runs must not read settings from it.
    settings = {**(settings or {}), "tuned": None}
    searches = [
        _Search(
            RunRequest(model, dataset, config_files, settings, names, tests=False), Path(folder)
        )
        for dataset in labels
        for model in names
    ]
    with resume_hint("the same command goes on"), ExitStack() as locks:
        for file in dict.fromkeys(search.trials_file for search in searches):
            locks.enter_context(locked(file))
        return [search.run(trials) for search in searches]


class _Search:
    """The search for one model's settings on one data set."""

    def __init__(self, asked: RunRequest, folder: Path) -> None:
        self.asked = asked
        default = self.config({})
        given = {k: v for k, v in default.external_config_dict.items() if k != "tuned"}
        space = read_search_space(asked.model, asked.dataset, asked.config_files, asked.settings)
        self.space = space.without(given)
        self.file = yaml_files.tuned_file(folder, asked.model, asked.dataset)
        self.trials_file = self.file.with_suffix(".json")
        self.identity: dict[str, Any] = {
            "model": asked.model,
            "dataset": asked.dataset,
            "valid_metric": default["valid_metric"],
            "bigger_is_better": default["valid_metric_bigger"],
            "seed": default["seed"],
            "search_space": self.space.entries,
            "given": json.loads(json.dumps(given, default=str)),
            "settings": default.complete_settings(),
        }
        self._check_ends(default)
        self._read_trials()  # raises its errors before the first trial of any search

    def config(self, searched: Mapping[str, Any]) -> RunConfig:
        """The configuration of a trial with the settings ``searched``."""
        asked = self.asked
        return RunConfig(
            asked.model, asked.dataset, asked.config_files, asked.settings, asked.beside, searched
        )

    def __str__(self) -> str:
        return f"{self.asked.model} on {self.asked.dataset}"

    def run(self, budget: int) -> dict[str, Any]:
        """Run the trials that are missing to ``budget``, and write the best settings."""
        trials = self._read_trials()
        budget = budget if self.space.entries else 1
        while len(trials) < budget:
            trials.append(self._trial(trials))
            content = json.dumps({**self.identity, "trials": trials}, indent=1, ensure_ascii=False)
            write_text(self.trials_file, content + "\n")
            self._say(trials, budget)
        trials = trials[:budget]
        best = ranked(trials, self.identity)[0]
        write_best(self.file, self.identity, trials, best)
        return {**self.identity, "trials": trials, "best": best, "file": str(self.file)}

    def _read_trials(self) -> list[Trial]:
        return read_trials(self.trials_file, self.identity)

    def _next_settings(self, trials: Sequence[Trial]) -> dict[str, Any]:
        if not trials:
            return {name: self.identity["settings"][name] for name in self.space.entries}
        tried = [(trial["settings"], value_of(trial, self.identity)) for trial in trials]
        return propose(self.space, tried, self.identity["seed"], self.identity["bigger_is_better"])

    def _trial(self, earlier: Sequence[Trial]) -> Trial:
        """Run the trial after the ``earlier`` ones. Errors of the first trial are raised."""
        settings = self._next_settings(earlier)
        folder = new_folder(Path(self.identity["settings"]["checkpoint_dir"]), "trial")
        users_file = self.file.with_suffix(f".trial-{len(earlier) + 1}.{FILE_NAME}")
        start = time.perf_counter()
        outcome: Trial
        try:
            with users_kept(users_file):
                outcome = self._validated(settings, folder)
            if earlier and outcome["data"] != earlier[0]["data"]:
                raise DataError(f"{self}: the data differ from the data of the first trial.")
        except (BackboneError, DataError, MissingLibraryError):
            raise  # not caused by the settings that are searched
        except Exception as error:  # a failed trial must not end the search
            if not earlier:
                raise
            logging.getLogger().exception(f"a trial of {self} failed")
            outcome = {"failed": error_line(error)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        seconds = round(time.perf_counter() - start, 1)
        return {"number": len(earlier) + 1, "settings": settings, **outcome, "seconds": seconds}

    def _validated(self, settings: Mapping[str, Any], folder: Path) -> Trial:
        result = execution.execute(plan(replace(self.asked, own=settings, folder=folder))).to_json()
        if not result["best_valid_result"]:
            raise SettingError(
                f"{self}: no epoch was validated, and validation chooses; set eval_step to 1."
            )
        return {
            "valid": result["best_valid_result"],
            "epochs": result["epochs"],
            "data": {name: result[name] for name in ("users", "items", "interactions")},
            "device": result["device"],
        }

    def _say(self, trials: Sequence[Trial], budget: int) -> None:
        if (value := value_of(trials[-1], self.identity)) is None:
            outcome = f"failed: {trials[-1]['failed']}"
        else:
            outcome = f"{self.identity['valid_metric']} {value:.4f}"
        best = ranked(trials, self.identity)[0]["number"]
        said = f"trial {len(trials)} of {budget}, {self}: {outcome} (best: trial {best})"
        print(said, file=sys.stderr, flush=True)

    def _check_ends(self, default: RunConfig) -> None:
        """Refuse entries that the model cannot use, and entries of the protocol."""
        for name, entry in self.space.entries.items():
            place = self.space.place(name)
            if name == "seed":
                raise SettingError(f"{place}: the best of several seeds is luck; leave it out.")
            for value in entry.get("choices") or (entry["low"], entry["high"]):
                try:
                    config = self.config({name: value})
                except SettingError as error:
                    raise SettingError(f"{place}: {error}") from error
                if protocol(config, 0) != protocol(default, 0):
                    raise SettingError(
                        f"{place}: it is part of the protocol, which is the same for every model; "
                        "leave it out."
                    )
