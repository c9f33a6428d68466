"""The class, options, trainer and dataset of each model, by its name.

The models of this package are in the tables below, and
:func:`recbole_idiomoe.models.registration.register_model` adds a user's own. All other names are
RecBole's. They are read from its source files, because importing its models takes torch and, for
some, lightgbm. A class is imported only when it is asked for.

Functions that take a model's name raise a :class:`SettingError` if no model has exactly this name,
or if it is a model of RecBole's that is not sequential.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from recbole_idiomoe.base.errors import SettingError, nearest
from recbole_idiomoe.base.options import Options
from recbole_idiomoe.base.recbole_package import recbole_folder
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models.language.options import IDIOMoEOptions

_RECBOLE = "recbole.model.sequential_recommender"

Place = str | type[Any]
"""A class, or ``module:class``."""


class Entry(NamedTuple):
    """The classes that belong to a model.

    Without a ``trainer``, :func:`recbole_idiomoe.training.trainers.get_trainer` chooses one.
    """

    model: Place
    options: Place
    trainer: Place | None = None
    dataset: Place = "recbole_idiomoe.data.dataset:WindowDataset"


def _entries(folder: str, dataset: str, *names: str, options: str = "") -> dict[str, Entry]:
    """The models ``names`` of a folder. The options of X are ``options``, or else XOptions."""
    place = f"recbole_idiomoe.models.{folder}"
    return {
        name: Entry(
            f"{place}.model:{name}",
            f"{place}.options:{options or f'{name}Options'}",
            dataset=f"recbole_idiomoe.data.{dataset}",
        )
        for name in names
    }


_HISTORIES, _WINDOWS = "dataset:HistoryDataset", "dataset:WindowDataset"

LANGUAGE_MODELS: dict[str, Entry] = {
    "IDIOMoE": Entry(
        "recbole_idiomoe.models.language.recommender:IDIOMoE",
        "recbole_idiomoe.models.language.options:IDIOMoEOptions",
        dataset="recbole_idiomoe.data.dataset:HistoryDataset",
    ),
    **_entries("controls", _HISTORIES, "ItemLLM", options="IDIOMoEOptions"),
    **_entries("controls", _HISTORIES, "IDTransformer"),
    **_entries("controls", _HISTORIES, "TextAttrLLM", options="IDIOMoEOptions"),
    **_entries("controls", _HISTORIES, "TitleLLM"),
    **_entries("controls", _HISTORIES, "IAM", "WideFFN", options="IDIOMoEOptions"),
    **_entries("controls", _HISTORIES, "AppendBlocks", "PrependBlocks", options="BlockOptions"),
    **_entries("controls", _HISTORIES, "LoRALLM"),
    **_entries("controls", _HISTORIES, "MoA", "MoT", options="IDIOMoEOptions"),
    **_entries("controls", _HISTORIES, "SwitchRouting"),
    **_entries("e4srec", _HISTORIES, "E4SRec"),
    **_entries("cove", _HISTORIES, "CoVE"),
}
"""Language models with a catalogue. They are loaded from a run's folder alone."""

BASELINES: dict[str, Entry] = {
    **_entries("counting", _HISTORIES, "Popularity", "TransitionCounter"),
    **_entries("sasrec", _WINDOWS, "SASRecCE", "SASRecSS"),
    **_entries("hstu", _WINDOWS, "HSTU"),
    **_entries("tiger", _HISTORIES, "TIGER"),
}
"""Other models of this package. They run, are saved and are loaded like RecBole's models."""

MODELS: dict[str, Entry] = LANGUAGE_MODELS | BASELINES

RECBOLE_FIRST_STAGES = {"S3Rec": "s3rec.pretraining:PretrainingStage"}
"""First stages of RecBole's models; this package's own models have theirs as an attribute."""

_LANGUAGE_OPTIONS = tuple(dict.fromkeys(entry.options for entry in LANGUAGE_MODELS.values()))


def get_model(name: str) -> type[Any]:
    """The recommender called ``name``."""
    check_model(name)
    if name in MODELS:
        return load_place(MODELS[name].model)
    return load_place(f"{_RECBOLE}.{name.lower()}:{name}")


def get_first_stage(name: str) -> Any:
    """The :class:`~recbole_idiomoe.models.first_stage.FirstStage` of model ``name``, or None."""
    if name in RECBOLE_FIRST_STAGES:
        return load_place(f"recbole_idiomoe.models.{RECBOLE_FIRST_STAGES[name]}")()
    return getattr(get_model(name), "first_stage", None)


def get_dataset_class(name: str) -> type[Any]:
    """The dataset class for model ``name``; RecBole's models have those of RecBole."""
    check_model(name)
    if name in MODELS:
        return load_place(MODELS[name].dataset)
    module = importlib.import_module("recbole_idiomoe.data.recbole_datasets")
    chosen: type[Any] = getattr(module, f"{name}Dataset", module.SequentialDataset)
    return chosen


def get_ready_made_class(name: str) -> type[Any]:
    """The dataset class for model ``name`` on a split that the user has made.

    Raises:
        SettingError: RecBole gives the model other rows than users, items and histories.
    """
    chosen, ours = get_dataset_class(name), "recbole_idiomoe.data"
    if issubclass(chosen, load_place(f"{ours}.dataset:HistoryDataset")):
        return chosen
    if chosen.__name__ != "SequentialDataset":
        raise SettingError(
            f"{name} needs columns that a ready-made split does not have; give one .inter file "
            "without benchmark_filename, or another model."
        )
    return load_place(f"{ours}.recbole_datasets:ReadyMadeDataset")


def get_options(name: str) -> type[Options]:
    """The options class of model ``name``; RecBole's models have no options of this package."""
    check_model(name)
    return load_place(MODELS[name].options) if name in MODELS else Options


def language_options() -> list[type[Options]]:
    """The options classes of this package's language models."""
    return [load_place(place) for place in _LANGUAGE_OPTIONS]


def reads_text(name: str) -> bool:
    """Whether model ``name`` reads the items' text; RecBole's models do not."""
    return name in MODELS and issubclass(get_options(name), TextOptions)


def is_of_family(name: str) -> bool:
    """Whether model ``name`` is IDIOMoE or one of its controls, not a baseline."""
    return issubclass(get_options(name), IDIOMoEOptions)


def what_is_trained(name: str, settings: Mapping[str, Any]) -> str:
    """What a run with ``settings`` trains of language model ``name``; empty for other models.

    The paper preserves the text expert (section 3.2), so tables say where a run did otherwise.
    """
    if name not in LANGUAGE_MODELS:
        return ""
    frozen = str(settings["freeze"]).replace("_", " ")
    return "trained whole" if frozen == "none" else f"{frozen} frozen"


def name_of(model_class: type[Any]) -> str | None:
    """The name under which a class can be run; None if it cannot."""
    name, module = model_class.__name__, model_class.__module__
    if module.startswith(f"{_RECBOLE}."):
        return name if name in sequential_models() else None
    known = name in MODELS and MODELS[name].model in (model_class, f"{module}:{name}")
    return name if known else None


def family(name: str) -> list[str]:
    """The models that model ``name`` derives from, and ``name`` last; RecBole's have no bases."""
    if name not in MODELS:
        check_model(name)
        return [name]
    bases = map(name_of, reversed(get_model(name).__mro__[1:]))
    return [*(base for base in bases if base), name]


def check_model(name: str) -> None:
    """Raise a :class:`SettingError` unless ``name`` is a model that can be run here."""
    runnable = [*MODELS, *sequential_models()]
    if name in runnable:
        return
    others = _recbole_models()
    if name in others:
        raise SettingError(
            f"{name} is one of RecBole's {others[name]} models; only sequential models can be "
            "run here (--list_models names them)."
        )
    advice = "--list_models names them all, and register_model adds a class of your own."
    if near := nearest(name, runnable):
        advice = f"did you mean {near!r}?"
    raise SettingError(f"unknown model {name!r}; {advice}")


def sequential_models() -> list[str]:
    """Names of RecBole's sequential recommenders, as its package lists them, sorted."""
    return sorted(name for name, kind in _recbole_models().items() if kind == "sequential")


@cache
def _recbole_models() -> dict[str, str]:
    """RecBole's models and their kinds, read from the imports of its model packages."""
    models: dict[str, str] = {}
    for package in sorted((recbole_folder() / "model").glob("*_recommender/__init__.py")):
        kind = package.parent.name.removesuffix("_recommender").replace("_", "-")
        for node in ast.parse(package.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                models.update({alias.asname or alias.name: kind for alias in node.names})
    return models


def load_place(place: Place) -> type[Any]:
    """The class that ``place`` is or names."""
    if not isinstance(place, str):
        return place
    module, name = place.split(":")
    loaded: type[Any] = getattr(importlib.import_module(module), name)
    return loaded
