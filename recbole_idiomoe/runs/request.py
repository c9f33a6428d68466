"""What a user asks for: one run, not checked yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_idiomoe.base.errors import SettingError


@dataclass(frozen=True)
class RunRequest:
    """One run as a user asks for it, which :func:`~recbole_idiomoe.runs.plan.plan` completes.

    Attributes:
        model: a model that the registry knows.
        dataset: the name of a data set.
        config_files: YAML files or result files; later ones win.
        settings: settings by name, which win over the files.
        beside: other models that the same command runs. Settings that only they have are ignored.
        own: settings for this model alone, which win over all others.
        resume: the folder of an unfinished run to resume; None: a new run.
        folder: the folder to write; None: ``resume``, or a new one under ``checkpoint_dir``.
        tests: whether to evaluate the test split. A search for settings does not, so that it
            cannot choose by the test.
    """

    model: str
    dataset: str
    config_files: Sequence[str | Path] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    beside: Collection[str] = ()
    own: Mapping[str, Any] = field(default_factory=dict)
    resume: Path | None = None
    folder: Path | None = None
    tests: bool = True


def names_of(
    models: str | Sequence[str] | None,
    datasets: str | Sequence[str] | None,
    layers: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[str]]:
    """Names of the models and data sets to run.

    Args:
        models: names, as a list or separated by commas; None: the ``model`` of ``layers``, or else
            IDIOMoE.
        datasets: names, as a list or separated by commas; None: the ``dataset`` of ``layers``, or
            else ml-100k.
        layers: settings by name; later layers win.

    Raises:
        SettingError: no name is left.
    """
    named: dict[str, Any] = {"model": "IDIOMoE", "dataset": "ml-100k"}
    for layer in layers:
        named |= layer
    return (
        _names("model", named["model"] if models is None else models),
        _names("dataset", named["dataset"] if datasets is None else datasets),
    )


def _names(kind: str, names: str | Sequence[str]) -> list[str]:
    listed = names.split(",") if isinstance(names, str) else names
    found = [name.strip() for name in listed if name.strip()]
    if not found:
        raise SettingError(f"no {kind} is named; --list_{kind}s names those there are.")
    return found
