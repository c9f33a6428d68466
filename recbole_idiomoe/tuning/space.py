"""What is searched: the ``search_space`` of a model's options or YAML file, or a user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.layers import own_layers

_FORMS = (
    "{low: 0.0001, high: 0.01, log: True}, {low: 1, high: 4}, {low: 0.0, high: 0.5, step: 0.1} or "
    "{choices: [64, 128]}"
)


@dataclass(frozen=True)
class SearchSpace:
    """The values that settings are tried with."""

    source: str
    """The options class or the file that names it."""
    entries: dict[str, dict[str, Any]]
    """By setting: ``choices``, or ``low`` and ``high``, both inclusive, and ``log`` or ``step``.

    Numbers between whole ends are whole.
    """

    def without(self, given: Mapping[str, Any]) -> SearchSpace:
        """The space of what is left to search, once some settings are given.

        Raises:
            SettingError: nothing is, of a space that has something.
        """
        left = {name: entry for name, entry in self.entries.items() if name not in given}
        if self.entries and not left:
            raise SettingError(
                f"{self.source}: search_space: nothing is left to search, since all of "
                f"{', '.join(self.entries)} are given; leave one out."
            )
        return SearchSpace(self.source, left)

    def place(self, name: str) -> str:
        """Where the entry called ``name`` stands, for a message."""
        return f"{self.source}: search_space: {name}"

    def ends(self) -> list[tuple[str, Any]]:
        """Settings with values that stand for all of an entry's: its choices, or both ends."""
        return [
            (name, value)
            for name, entry in self.entries.items()
            for value in entry.get("choices") or (entry["low"], entry["high"])
        ]


def read_search_space(
    model: str,
    dataset: str,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
) -> SearchSpace:
    """The space of ``model`` on ``dataset``: the last of the layers that has one says it whole.

    The layers are those of :class:`~recbole_idiomoe.config.run_config.RunConfig`: our YAML files,
    of which ``overall.yaml`` has one for models without their own, the model's options,
    ``config_files``, ``settings``.

    Raises:
        SettingError: an entry that cannot be; the message names the entry and where it stands.
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
    """What is wrong with an entry, if anything is."""
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
