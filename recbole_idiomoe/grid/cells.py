"""Grids: variants of models x data sets x seeds, their runs kept until all are there.

The ablation tables of the paper (4 to 7, Figure 6) are grids of one model's variants. A
:class:`Grid` says what the rows are, a :class:`Cell` is one run, and :func:`run_grid` makes one
result of all cells' results. How cells are run, here or in processes, is
:mod:`recbole_idiomoe.grid.running`'s affair.
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
from recbole_idiomoe.config.run_config import COMMAND, RunConfig
from recbole_idiomoe.models import registry
from recbole_idiomoe.protocol.description import protocol

_MOST_SEEDS = 100


@dataclass(frozen=True)
class Grid:
    """The rows of a table, and how often each is run."""

    variants: dict[str, dict[str, Any]]
    """Each row's own settings, its ``model`` among them, by the row's name."""
    baseline: str
    """The row that the others are compared with."""
    seeds: int
    """Runs of a row on a data set: with ``seed``, ``seed`` + 1, ..."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    variant: str
    model: str
    dataset: str
    settings: dict[str, Any]
    """Complete, as :meth:`RunConfig.complete_settings` gives them."""
    files: tuple[tuple[str, str], ...] = ()
    """Name and digest of what it reads, where that is the user's own."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """Those of ``settings`` that tuning chose."""

    def __str__(self) -> str:
        return f"{self.variant} on {self.dataset}, seed {self.settings['seed']}"

    @cached_property
    def identity(self) -> str:
        """What is run but for the seed: another model, setting, file or version, another text.

        The row's name is not in it. Nor is what has no effect on a result, so that a run is known
        again on another machine and where its data lie elsewhere; nor, for models that read no
        text, are the options of language models.
        """
        without_effect = _WITHOUT_EFFECT
        if not registry.reads_text(self.model):
            listed = {name for kind in registry.language_options() for name in kind.defaults()}
            own = registry.get_options(self.model).defaults().keys()
            without_effect = without_effect | (listed - own)
        effective = {k: v for k, v in self.settings.items() if k not in without_effect}
        installed = versions()
        makers = {name: installed[name] for name in ("recbole", "recbole_idiomoe")}
        read = [self.model, self.dataset, effective, makers, self.files]
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def key(self) -> str:
        """A file's name for the run, in which its :attr:`identity` and its seed are."""
        name = f"{self.model}-{self.dataset}-{self.settings['seed']}"
        return re.sub(r"[^\w.-]", "_", f"{name}-{self.identity}")


_WITHOUT_EFFECT = frozenset(
    ("checkpoint_dir", "data_path", "language_file", "seed", "show_progress")
)


def read_grid(models: Sequence[str], layers: Iterable[Mapping[str, Any]]) -> Grid | None:
    """The grid that ``variants``, ``baseline`` and ``seeds`` in ``layers`` ask for, if they do.

    Args:
        models: those that are run: the rows where no variants are named, else the model of
            rows that name none.
        layers: settings, later ones winning. One that names variants and no baseline has its
            first row as baseline, whatever an earlier one says.

    Returns:
        None where there are no variants and one seed.

    Raises:
        SettingError: an entry of the wrong type, no row, or a baseline that is none.
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
    """Every run of ``grid``, checked: by data set, then row, then seed.

    A row's settings win over ``settings``, and these over ``config_files``.

    Raises:
        SettingError: a row's model or settings cannot be, or give its runs another protocol
            than the baseline's.
    """
    for name, row in grid.variants.items():
        with _naming(name):
            registry.check_model(row["model"])
    models = [row["model"] for row in grid.variants.values()]
    cells = []
    for dataset in datasets:
        configs = {}
        for name, row in grid.variants.items():
            own = {key: value for key, value in row.items() if key != "model"}
            with _naming(name):
                configs[name] = RunConfig(
                    row["model"], dataset, config_files, settings, beside=models, own=own
                )
        expected = protocol(configs[grid.baseline], 0)
        for name, config in configs.items():
            check_same_protocol(name, protocol(config, 0), grid.baseline, expected)
            complete, seed, files = config.complete_settings(), config["seed"], files_of(config)
            cells += [
                Cell(
                    name,
                    config["model"],
                    dataset,
                    complete | {"seed": seed + n},
                    files,
                    config.tuned_settings,
                )
                for n in range(grid.seeds)
            ]
    return cells


def shared_settings(
    config_files: Sequence[str | Path], settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What is given for all rows alike, so that it can be given again."""
    shared: dict[str, Any] = {}
    for layer in (*map(yaml_files.read_settings, config_files), settings or {}):
        overlay(shared, layer)
    return {key: value for key, value in shared.items() if key not in COMMAND}


def grid_result(
    grid: Grid, shared: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One result of all ``runs``: what goes into the file, and what the table is made of.

    Args:
        grid: the rows.
        shared: settings of all rows.
        runs: one a cell, each with ``variant``, ``dataset``, ``protocol``, ``device`` and
            ``versions`` besides what stays in it.

    Raises:
        SettingError: runs on one data set differ in their protocol.
    """
    protocols: dict[str, Any] = {}
    for run in runs:
        expected = protocols.setdefault(run["dataset"], run["protocol"])
        check_same_protocol(run["variant"], run["protocol"], runs[0]["variant"], expected)
    common = {"protocol", "device", "versions"}
    return {
        "dataset": list(protocols),
        "variants": grid.variants,
        "baseline": grid.baseline,
        "seeds": grid.seeds,
        "settings": dict(shared),
        "protocol": protocols,
        "device": "; ".join(dict.fromkeys(run["device"] for run in runs)),
        "versions": runs[0]["versions"],
        "runs": [{k: v for k, v in run.items() if k not in common} for run in runs],
    }


def check_same_protocol(
    row: str, found: Mapping[str, Any], other: str, expected: Mapping[str, Any]
) -> None:
    """Refuse to compare runs of different protocols.

    Raises:
        SettingError: ``found``, the protocol of ``row``, is not ``expected``, that of ``other``.
    """
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        raise SettingError(
            f"row {row!r} has another protocol than {other!r} ({', '.join(differing)}): their "
            "numbers do not compare; give such settings to all rows."
        )


def files_of(config: RunConfig) -> tuple[tuple[str, str], ...]:
    """Those of the data set, text encoder and language, as :attr:`Cell.files` has them."""
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
    """Of the content alone: a copy of a file has times of its own. Read once if unchanged."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


@contextmanager
def _naming(row: str) -> Iterator[None]:
    """Say of a refusal which row it is about."""
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
