"""What is said of a model on a data set before a user says anything, and which settings it has."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import recbole

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.config.options import listed_defaults
from recbole_idiomoe.models import registry


def overlay(base: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """``base``, changed: a value in ``layer`` replaces that of ``base``; ``eval_args`` merge."""
    merged = {**base, **layer}
    if isinstance(base.get("eval_args"), dict) and isinstance(layer.get("eval_args"), dict):
        merged["eval_args"] = {**base["eval_args"], **layer["eval_args"]}
    base.update(merged)
    return base


def own_layers(model: str, dataset: str) -> list[tuple[str, dict[str, Any]]]:
    """What this package says of ``model`` on ``dataset``: where, and the settings; later ones win.

    A layer may have a ``search_space``, which is no setting of a run.
    """
    family = registry.family(model)

    def files(*names: str) -> list[tuple[str, dict[str, Any]]]:
        root = yaml_files.properties_path()
        found = [root / f"{name}.yaml" for name in names]
        return [
            (str(file.relative_to(root.parent)), yaml_files.read_settings(file))
            for file in found
            if file.is_file()
        ]

    return [
        *files("overall", *(f"model/{member}" for member in family)),
        *registry.get_options(model).layers(),
        *files(f"dataset/{dataset}"),
        *files(*(f"quick_start_config/{member}_{dataset}" for member in family)),
    ]


def own_settings(model: str) -> set[str]:
    """Settings to which ``model`` gives values of its own: its recipe and options of it alone."""
    options = registry.get_options(model)
    recipe = {key for _, layer in options.layers() for key in layer}
    return recipe | (options.defaults().keys() - listed_defaults().keys())


def keys_of(model: str) -> set[str]:
    """Settings of ``model`` alone: those that its files and options name, or its code asks for."""
    file = yaml_files.properties_path() / "model" / f"{model}.yaml"
    ours = yaml_files.read_settings(file) if file.is_file() else {}
    return ours.keys() | recbole_defaults(model).keys() | keys_read_by(model)


def recbole_defaults(model: str) -> dict[str, Any]:
    """What RecBole's own file of ``model`` says, if it has one."""
    file = Path(recbole.__file__).parent / "properties" / "model" / f"{model}.yaml"
    return yaml_files.read_settings(file) if file.is_file() else {}


def keys_read_by(model: str) -> set[str]:
    """Its options, and names in ``config["..."]`` in RecBole's files of what it derives from."""
    modules = {cls.__module__ for cls in registry.get_model(model).__mro__}
    sources = (
        inspect.getsource(sys.modules[name]) for name in modules if name.startswith("recbole.")
    )
    found = {key for text in sources for key in re.findall(r"config\[[\"'](\w+)[\"']\]", text)}
    return found | registry.get_options(model).defaults().keys()
