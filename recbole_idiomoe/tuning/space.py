"""The search space of a model, and the settings that optuna's TPE proposes from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.errors import MissingLibraryError, SettingError
from recbole_idiomoe.config.layers import own_layers

_FORMS = (
    "{low: 0.0001, high: 0.01, log: True}, {low: 1, high: 4}, {low: 0.0, high: 0.5, step: 0.1} or "
    "{choices: [64, 128]}"
)


@dataclass(frozen=True)
class SearchSpace:
    """The values to try for each setting."""

    source: str
    """The file that defines the space."""
    entries: dict[str, dict[str, Any]]
    """For each setting ``choices``, or inclusive ``low`` and ``high``, with ``log`` or ``step``.

    If ``low``, ``high`` and ``step`` are integers, so are the values.
    """

    def without(self, given: Mapping[str, Any]) -> SearchSpace:
        """The space without the settings that are given.

        Raises:
            SettingError: no setting is left, although the space has some.
        """
        left = {name: entry for name, entry in self.entries.items() if name not in given}
        if self.entries and not left:
            raise SettingError(
                f"{self.source}: search_space: nothing is left to search, since all of "
                f"{', '.join(self.entries)} are given; leave one out."
            )
        return SearchSpace(self.source, left)

    def place(self, name: str) -> str:
        """The place of the entry ``name``, for an error message."""
        return f"{self.source}: search_space: {name}"


def read_search_space(
    model: str,
    dataset: str,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
) -> SearchSpace:
    """The search space of ``model`` on ``dataset``, from the last layer that has one.

    The layers are the same as in :class:`~recbole_idiomoe.config.run_config.RunConfig`: the
    package's YAML files (``overall.yaml`` has a default), ``config_files``, then ``settings``.

    Raises:
        SettingError: an entry is not valid; the message names the file and the entry.
    """
    layers = own_layers(model, dataset)
    layers += [(str(file), yaml_files.read_settings(file)) for file in config_files]
    layers += [("settings", dict(settings or {}))]
    source, content = next(layer for layer in reversed(layers) if "search_space" in layer[1])
    entries = content["search_space"]
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise SettingError(
            f"{source}: search_space={entries!r} must be settings with what to try, as "
            "{learning_rate: {low: 0.0001, high: 0.01, log: True}}."
        )
    space = SearchSpace(source, entries)
    for name, entry in entries.items():
        if fault := _fault(entry):
            raise SettingError(f"{space.place(name)}: {fault}")
    return space


def _fault(entry: Any) -> str | None:
    """What is wrong with an entry, or None."""
    if isinstance(entry, dict) and entry.keys() == {"choices"}:
        return _fault_of_choices(entry["choices"])
    parts = {"low", "high"}
    if not isinstance(entry, dict) or not parts <= entry.keys() <= parts | {"log", "step"}:
        return f"{entry!r} must be {_FORMS}."
    for part in ("low", "high", "step"):
        if part in entry and not _is_number(entry[part]):
            return f"{part}={entry[part]!r} must be a finite number."
    low, high, step, log = entry["low"], entry["high"], entry.get("step"), entry.get("log", False)
    if not isinstance(log, bool):
        return f"log={log!r} must be True or False."
    if low >= high:
        return f"low={low} must be below high={high}."
    if log and (step is not None or low <= 0):
        return "log needs a low above 0, and no step."
    if step is not None:
        steps = (high - low) / step if step > 0 else 0.0
        if steps < 1 or not math.isclose(steps, round(steps)):
            return f"step={step} must lead from low={low} to high={high}."
    return None


def _fault_of_choices(choices: Any) -> str | None:
    if not isinstance(choices, list) or not all(
        isinstance(value, str | bool | None) or _is_number(value) for value in choices
    ):
        return f"choices={choices!r} must be a list of numbers, texts, True, False or null."
    if len(choices) < 2 or len({(type(value), value) for value in choices}) < len(choices):
        return f"choices={choices!r} must be at least two, all different."
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_optuna() -> Any:
    """Import optuna and silence its log.

    Raises:
        MissingLibraryError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingLibraryError("--tune needs optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def propose(
    space: SearchSpace,
    tried: Sequence[tuple[Mapping[str, Any], float | None]],
    seed: int,
    bigger: bool,
) -> dict[str, Any]:
    """Propose a value for every setting of ``space`` by TPE.

    A proposal depends only on the earlier trials and the seed, so that an interrupted search
    resumes without a difference.

    Args:
        space: the search space.
        tried: settings and value of all earlier trials. A failed trial has the value None and
            counts as the worst value. Trials with settings outside ``space``, as defaults may be,
            are ignored.
        seed: seed of the search; it is combined with the number of the trial.
        bigger: whether a bigger value is better.
    """
    optuna = load_optuna()
    entries = {name: _distribution(optuna, entry) for name, entry in space.entries.items()}
    (own_seed,) = np.random.SeedSequence([seed, len(tried)]).generate_state(1)
    study = optuna.create_study(
        direction="maximize" if bigger else "minimize",
        sampler=optuna.samplers.TPESampler(seed=int(own_seed)),
    )
    values = [value for _, value in tried if value is not None]
    worst = (min if bigger else max)(values)
    for settings, value in tried:
        with suppress(ValueError):  # from optuna, for settings outside the space
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(settings),
                    distributions=entries,
                    value=worst if value is None else value,
                )
            )
    proposed: dict[str, Any] = study.ask(entries).params
    return proposed


def _distribution(optuna: Any, entry: Mapping[str, Any]) -> Any:
    kinds = optuna.distributions
    if "choices" in entry:
        return kinds.CategoricalDistribution(entry["choices"])
    is_whole = all(isinstance(entry.get(part), int | None) for part in ("low", "high", "step"))
    return (kinds.IntDistribution if is_whole else kinds.FloatDistribution)(**entry)
