"""The settings of a model on a data set before a user changes any, and their names."""

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
    """Update ``base`` with ``layer`` and return it; the parts of ``eval_args`` are merged."""
    before, after = base.get("eval_args"), layer.get("eval_args")
    base.update(layer)
    if isinstance(before, dict) and isinstance(after, dict):
        base["eval_args"] = before | after
    return base


def own_layers(model: str, dataset: str) -> list[tuple[str, dict[str, Any]]]:
    """This package's settings for ``model`` on ``dataset``, each with its source; later ones win.

    A layer may also have a ``search_space``, which is not a setting of a run.
    """
    family, root = registry.family(model), yaml_files.properties_path()

    def files(*names: str) -> list[tuple[str, dict[str, Any]]]:
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
    """Settings in the recipe of ``model``, and options that not every model lists."""
    options = registry.get_options(model)
    recipe = {key for _, layer in options.layers() for key in layer}
    return recipe | (options.defaults().keys() - listed_defaults().keys())


def keys_of(model: str) -> set[str]:
    """Settings that the files, the options and the code of ``model`` name."""
    file = yaml_files.properties_path() / "model" / f"{model}.yaml"
    ours = yaml_files.read_settings(file) if file.is_file() else {}
    return ours.keys() | recbole_defaults(model).keys() | keys_read_by(model)


def recbole_defaults(model: str) -> dict[str, Any]:
    """The settings in RecBole's file of ``model``, if it has one."""
    file = Path(recbole.__file__).parent / "properties" / "model" / f"{model}.yaml"
    return yaml_files.read_settings(file) if file.is_file() else {}


def keys_read_by(model: str) -> set[str]:
    """The options of ``model``, and names in ``config["..."]`` in RecBole's code of its bases."""
    modules = {cls.__module__ for cls in registry.get_model(model).__mro__}
    sources = (
        inspect.getsource(sys.modules[name]) for name in modules if name.startswith("recbole.")
    )
    found = {key for text in sources for key in re.findall(r"config\[[\"'](\w+)[\"']\]", text)}
    return found | registry.get_options(model).defaults().keys()
