"""Tuning models: trials one after another, each kept as it ends, and the best one's settings.

A trial is a run up to its best epoch on validation. The test split is not evaluated, and what
chooses is not given it (:func:`recbole_idiomoe.run.execution.validate_one`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from recbole.utils import get_local_time

from recbole_idiomoe import api
from recbole_idiomoe.base import distributed, yaml_files
from recbole_idiomoe.base.command_line import interruption_told
from recbole_idiomoe.base.errors import (
    BackboneError,
    DataError,
    MissingLibraryError,
    SettingError,
    reason_of,
)
from recbole_idiomoe.base.files import refusal
from recbole_idiomoe.base.run_folder import new_folder
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.grid.cells import read_grid
from recbole_idiomoe.protocol.description import protocol
from recbole_idiomoe.run import execution as one_run
from recbole_idiomoe.training.loss_watch import FILE_NAME, users_kept
from recbole_idiomoe.tuning.proposals import load_optuna, propose
from recbole_idiomoe.tuning.space import read_search_space
from recbole_idiomoe.tuning.trials import (
    Trial,
    best_of,
    held,
    read_trials,
    value_of,
    write_best,
    write_trials,
)

FOLDER = "tuned"
_MOST_TRIALS = 10_000


def tune(
    models: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    trials: int,
) -> list[dict[str, Any]]:
    """Search the settings of every model on every data set, with as many trials each.

    The first trial has the model's default settings, the others are proposed by TPE from the
    ``search_space`` of the model's options class, or of its file in ``properties/model/`` if it is
    RecBole's. What is given, by file or setting, is not searched. The best value of
    ``valid_metric`` on validation wins; between equals, the earlier trial. The setting ``tuned``
    names the folder, ``tuned`` if it does not: there,
    ``MODEL_DATASET.json`` keeps every trial, and the same call goes on where it stopped;
    ``MODEL_DATASET.yaml`` has the best settings, for ``tuned`` or ``config_files`` of a run.

    Args:
        models: as in :func:`recbole_idiomoe.api.run`.
        datasets: likewise.
        config_files: likewise; one may have a ``search_space``.
        settings: likewise.
        trials: how many, for each model on each data set, the default settings' included. A
            model with an empty search space has that one alone.

    Returns:
        One entry a model and data set: what its JSON file holds, with no more than ``trials``
        trials, the ``best`` of them, and the ``file`` with its settings.

    Raises:
        IdiomoeError: something that cannot be searched, or that another process is searching in
            the same folder, or default settings that cannot be run.
            Another trial that fails is kept, with the reason, and counts.
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
    names, labels = api.what_is_run(models, datasets, layers[:-1])
    if read_grid(names, layers) is not None:
        raise SettingError("a search is of one row; leave variants, seeds and baseline out.")
    folder = next((layer["tuned"] for layer in reversed(layers) if layer.get("tuned")), FOLDER)
    if not isinstance(folder, str | Path):
        raise SettingError(f"tuned={folder!r} must name a folder.")
    if reason := refusal(Path(folder)):
        raise SettingError(f"tuned={folder} cannot be written ({reason}); name another.")
    # The folder is written to, not read.
    settings = {**(settings or {}), "tuned": None}
    searches = [
        _Search(model, dataset, config_files, settings, names, Path(folder))
        for dataset in labels
        for model in names
    ]
    with (
        interruption_told("the same command goes on"),
        ExitStack() as locks,
    ):  # all of them, before hours of the trials of the first
        for file in dict.fromkeys(search.trials_file for search in searches):
            locks.enter_context(held(file))
        return [search.run(trials) for search in searches]


class _Search:
    """The search for one model's settings on one data set.

    Raises:
        SettingError: the model's settings or its search space cannot be, or its file has trials
            of another search.
        CheckpointError: its file of trials cannot be read.
    """

    def __init__(
        self,
        model: str,
        dataset: str,
        config_files: Sequence[str | Path],
        settings: Mapping[str, Any],
        beside: Sequence[str],
        folder: Path,
    ) -> None:
        def config(searched: Mapping[str, Any]) -> RunConfig:
            return RunConfig(model, dataset, config_files, settings, beside, searched)

        default = config({})
        given = {k: v for k, v in default.external_config_dict.items() if k != "tuned"}
        self.space = read_search_space(model, dataset, config_files, settings).without(given)
        self.config = config
        self.file = yaml_files.tuned_file(folder, model, dataset)
        self.trials_file = self.file.with_suffix(".json")
        self.identity: dict[str, Any] = {
            "model": model,
            "dataset": dataset,
            "valid_metric": default["valid_metric"],
            "bigger_is_better": default["valid_metric_bigger"],
            "seed": default["seed"],
            "search_space": self.space.entries,
            "given": _plain(given),
            "settings": default.complete_settings(),
        }
        self._check_ends(default)
        self._kept()  # found out before hours of the trials of those before it

    def __str__(self) -> str:
        return f"{self.identity['model']} on {self.identity['dataset']}"

    def run(self, budget: int) -> dict[str, Any]:
        """Run what is missing of ``budget`` trials, and choose among these."""
        trials = self._kept()
        budget = budget if self.space.entries else 1
        while len(trials) < budget:
            trials.append(self._trial(trials))
            write_trials(self.trials_file, self.identity, trials)
            self._say(trials, budget)
        trials = trials[:budget]
        best = best_of(trials, self.identity)
        write_best(self.file, self.identity, trials, best)
        return {**self.identity, "trials": trials, "best": best, "file": str(self.file)}

    def _kept(self) -> list[Trial]:
        """The trials that earlier commands ran."""
        return read_trials(self.trials_file, self.identity)

    def _next_settings(self, trials: Sequence[Trial]) -> dict[str, Any]:
        if not trials:
            return {name: self.identity["settings"][name] for name in self.space.entries}
        tried = [(trial["settings"], value_of(trial, self.identity)) for trial in trials]
        return propose(self.space, tried, self.identity["seed"], self.identity["bigger_is_better"])

    def _trial(self, earlier: Sequence[Trial]) -> Trial:
        """The trial after the ``earlier`` ones. The first must not fail."""
        settings = self._next_settings(earlier)
        checkpoints = Path(self.identity["settings"]["checkpoint_dir"])
        folder = new_folder(checkpoints, f"trial-{get_local_time()}-{os.getpid()}")
        users_file = self.file.with_suffix(f".trial-{len(earlier) + 1}.{FILE_NAME}")
        start = time.perf_counter()
        outcome: Trial
        try:
            with users_kept(users_file):
                outcome = self._validated(settings, folder)
            if earlier and outcome["data"] != earlier[0]["data"]:
                raise DataError(f"{self}: the data are others than those of the first trial.")
        except (BackboneError, DataError, MissingLibraryError):
            raise  # they are not the doing of what is searched
        # The other trials are worth having, whatever ends this one.
        except Exception as error:
            if not earlier:
                raise
            logging.getLogger().exception(f"a trial of {self} failed")
            outcome = {"failed": reason_of(error)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        seconds = round(time.perf_counter() - start, 1)
        return {"number": len(earlier) + 1, "settings": settings, **outcome, "seconds": seconds}

    def _validated(self, settings: Mapping[str, Any], folder: Path) -> Trial:
        result = one_run.validate_one(self.config(settings), folder)
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
        value = value_of(trials[-1], self.identity)
        outcome = (
            f"failed: {trials[-1]['failed']}"
            if value is None
            else f"{self.identity['valid_metric']} {value:.4f}"
        )
        best = best_of(trials, self.identity)["number"]
        said = f"trial {len(trials)} of {budget}, {self}: {outcome} (best: trial {best})"
        print(said, file=sys.stderr, flush=True)

    def _check_ends(self, default: RunConfig) -> None:
        """Refuse entries that the model cannot take, and those that are the same for all models.

        Raises:
            SettingError: the message names the file and the entry.
        """
        for name, value in self.space.ends():
            place = self.space.place(name)
            if name == "seed":
                raise SettingError(f"{place}: the best of several seeds is luck; leave it out.")
            try:
                config = self.config({name: value})
            except SettingError as error:
                raise SettingError(f"{place}: {error}") from error
            if protocol(config, 0) != protocol(default, 0):
                raise SettingError(
                    f"{place}: it is part of the protocol, which is the same for every model; "
                    "leave it out."
                )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
