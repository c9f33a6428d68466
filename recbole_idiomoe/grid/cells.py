"""The runs of a table: variants of models x data sets x seeds, and the result of all of them.

The ablation tables of the paper (4 to 7, Figure 6) have variants of one model as rows.
:mod:`recbole_idiomoe.grid.running` runs the cells.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.environment import versions
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.checks import check_text_file
from recbole_idiomoe.config.layers import overlay
from recbole_idiomoe.config.places import with_absolute_paths
from recbole_idiomoe.config.run_config import COMMAND, RunConfig
from recbole_idiomoe.models import registry
from recbole_idiomoe.protocol.description import protocol

_MOST_SEEDS = 100


@dataclass(frozen=True)
class Grid:
    """The rows of a table and the number of seeds."""

    variants: dict[str, dict[str, Any]]
    """The settings of each row by its name; each has a ``model``."""
    baseline: str
    """The row that the others are compared with."""
    seeds: int
    """Each row runs on each data set with the seeds ``seed``, ``seed + 1``, ..."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    variant: str
    model: str
    dataset: str
    settings: dict[str, Any]
    """All settings, as :meth:`RunConfig.complete_settings` returns them."""
    files: tuple[tuple[str, str], ...] = ()
    """Names and digests of the user's files that the run reads; see :func:`files_of`."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """The settings that tuning chose."""

    def __str__(self) -> str:
        return f"{self.variant} on {self.dataset}, seed {self.settings['seed']}"

    @cached_property
    def identity(self) -> str:
        """A digest of model, data set, settings, files and versions, without seed and row name.

        Settings without an effect on the result are left out, so that a run is recognised on
        another machine and with its data in another folder. Options of language models are left
        out for models that read no text.
        """
        left_out = {"checkpoint_dir", "data_path", "language_file", "seed", "show_progress"}
        if not registry.reads_text(self.model):
            listed = {name for kind in registry.language_options() for name in kind.defaults()}
            left_out |= listed - registry.get_options(self.model).defaults().keys()
        effective = {k: v for k, v in self.settings.items() if k not in left_out}
        installed = {name: versions()[name] for name in ("recbole", "recbole_idiomoe")}
        content = [self.model, self.dataset, effective, installed, self.files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def key(self) -> str:
        """A file name for the run, with its seed and its :attr:`identity`."""
        name = f"{self.model}-{self.dataset}-{self.settings['seed']}"
        return re.sub(r"[^\w.-]", "_", f"{name}-{self.identity}")


def read_grid(models: Sequence[str], layers: Iterable[Mapping[str, Any]]) -> Grid | None:
    """The grid that ``variants``, ``baseline`` and ``seeds`` in ``layers`` define.

    Args:
        models: the models to run. Without variants they are the rows; otherwise a single model is
            the model of rows that name none.
        layers: settings; later ones override earlier ones. Variants without a baseline in the
            same layer have their first row as baseline.

    Returns:
        None if there are no variants and only one seed.

    Raises:
        SettingError: an entry has the wrong type, there is no row, or the baseline is not a row.
    """
    given: dict[str, Any] = {}
    for layer in layers:
        if "variants" in layer:
            given.pop("baseline", None)
        given.update({key: layer[key] for key in ("variants", "baseline", "seeds") if key in layer})
    seeds = given.get("seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= _MOST_SEEDS:
        raise SettingError(
            f"seeds={seeds!r} must be how many seeds each run is repeated with, a whole number "
            f"from 1 to {_MOST_SEEDS}; the first is seed."
        )
    if "variants" in given:
        variants = dict(_rows(given["variants"], models))
    elif seeds > 1:
        variants = {model: {"model": model} for model in models}
    elif "baseline" in given:
        raise SettingError(
            f"baseline={given['baseline']!r}: there is no table with differences to it; give "
            "variants or seeds."
        )
    else:
        return None
    baseline = given.get("baseline", next(iter(variants)))
    if baseline not in variants:
        raise SettingError(f"baseline={baseline!r} is none of the rows: {', '.join(variants)}.")
    return Grid(variants, baseline, seeds)


def cells_of(
    grid: Grid,
    datasets: Sequence[str],
    config_files: Sequence[str | Path],
    settings: Mapping[str, Any] | None,
) -> list[Cell]:
    """All runs of ``grid``, ordered by data set, row and seed.

    A row's settings override ``settings``, and these override ``config_files``.

    Raises:
        SettingError: a row has an unknown model, a setting that is not valid, or a setting that
            changes the protocol.
    """
    for name, row in grid.variants.items():
        with _row_in_errors(name):
            registry.check_model(row["model"])
    models = [row["model"] for row in grid.variants.values()]
    cells = []
    for dataset in datasets:
        configs = {}
        for name, row in grid.variants.items():
            own = {key: value for key, value in row.items() if key != "model"}
            with _row_in_errors(name):
                configs[name] = RunConfig(
                    row["model"], dataset, config_files, settings, beside=models, own=own
                )
        expected = protocol(configs[grid.baseline], 0)
        for name, config in configs.items():
            _check_same_protocol(name, protocol(config, 0), grid.baseline, expected)
            complete, model, files = config.complete_settings(), config["model"], files_of(config)
            for seed in range(config["seed"], config["seed"] + grid.seeds):
                own = complete | {"seed": seed}
                cells.append(Cell(name, model, dataset, own, files, config.tuned_settings))
    return cells


def shared_settings(
    config_files: Sequence[str | Path], settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The settings that the user gave for all rows."""
    shared: dict[str, Any] = {}
    for layer in (*map(yaml_files.read_settings, config_files), settings or {}):
        overlay(shared, layer)
    return with_absolute_paths({k: v for k, v in shared.items() if k not in COMMAND})


def grid_result(
    grid: Grid, shared: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The result of all ``runs``, for the result file and the table.

    Args:
        grid: the rows.
        shared: settings of all rows.
        runs: an entry for each cell, with ``variant``, ``dataset``, ``protocol``, ``device`` and
            ``versions``; all else is copied.

    Raises:
        SettingError: runs on one data set differ in their protocol.
    """
    protocols: dict[str, Any] = {}
    for run in runs:
        expected = protocols.setdefault(run["dataset"], run["protocol"])
        _check_same_protocol(run["variant"], run["protocol"], runs[0]["variant"], expected)
    common = {"protocol", "device", "versions"}
    return {
        "dataset": list(protocols),
        "variants": {name: with_absolute_paths(row) for name, row in grid.variants.items()},
        "baseline": grid.baseline,
        "seeds": grid.seeds,
        "settings": dict(shared),
        "protocol": protocols,
        "device": "; ".join(dict.fromkeys(run["device"] for run in runs)),
        "versions": runs[0]["versions"],
        "runs": [{k: v for k, v in run.items() if k not in common} for run in runs],
    }


def _check_same_protocol(
    row: str, found: Mapping[str, Any], other: str, expected: Mapping[str, Any]
) -> None:
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        raise SettingError(
            f"row {row!r} has another protocol than {other!r} ({', '.join(differing)}): their "
            "numbers do not compare; give such settings to all rows."
        )


def files_of(config: RunConfig) -> tuple[tuple[str, str], ...]:
    """Names and digests of the files of data set, text vectors and language that a run reads."""
    names = dict.fromkeys((config["dataset_label"], config["recbole_name"] or ""))
    paths = [path for name in names if name for path in sorted((config.data_root / name).glob("*"))]
    if registry.reads_text(config["model"]) and str(config["text_encoder"]).endswith(".npz"):
        paths.append(Path(config["text_encoder"]))
    if config["language_file"]:
        check_text_file("language_file", config["language_file"])
        if config["model"] in registry.LANGUAGE_MODELS:
            paths.append(Path(config["language_file"]))
    found = [(path, path.stat()) for path in paths if path.is_file()]
    return tuple((path.name, _digest(path, at.st_size, at.st_mtime_ns)) for path, at in found)


@lru_cache
def _digest(path: Path, size: int, changed: int) -> str:
    """A digest of the content, which is read again if ``size`` or time of change differ."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


@contextmanager
def _row_in_errors(row: str) -> Iterator[None]:
    try:
        yield
    except SettingError as error:
        raise SettingError(f"row {row!r}: {error}") from error


def _rows(variants: Any, models: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(variants, dict) or not variants:
        raise SettingError(
            f"variants={variants!r} must be a mapping of rows' names to their settings, as "
            "{wide: {expert_width: 1}, narrow: {expert_width: 0.5}}."
        )
    for name, row in variants.items():
        if not isinstance(name, str) or not name.strip():
            raise SettingError(f"variants: the name {name!r} must be text; put it in quotes.")
        row = {} if row is None else row
        if not isinstance(row, dict) or not all(isinstance(key, str) for key in row):
            raise SettingError(f"variants: {name}: {row!r} must be settings, as {{epochs: 3}}.")
        if "model" not in row and len(models) > 1:
            raise SettingError(
                f"variants: {name!r} names no model, and {', '.join(models)} are run; name one."
            )
        model = row.get("model", models[0])
        if not isinstance(model, str):
            raise SettingError(f"variants: {name}: model={model!r} must be one model's name.")
        yield name, {**row, "model": model}
