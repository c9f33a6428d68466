"""Which class, options, trainer and dataset belong to a model's name.

The models of this package are in the tables below, a line each; models of a user's own are added
by :func:`recbole_idiomoe.models.registration.register_model`; any other name is one of RecBole's.
Nothing heavy is imported before a class is asked for, and RecBole's names are read out of its
source files: importing all its models needs torch, and lightgbm for some.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from typing import Any, NamedTuple

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.options import Options
from recbole_idiomoe.base.recbole_package import recbole_folder
from recbole_idiomoe.base.spelling import nearest
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models.language.options import IDIOMoEOptions

_RECBOLE = "recbole.model.sequential_recommender"

Place = str | type[Any]
"""A class, or ``module:class``."""


class Entry(NamedTuple):
    """A model: its class, its options, and the dataset and trainer that it is run with.

    Unless an entry says otherwise, a row of the dataset is a training window, and the trainer is
    the one that fits the class, see :func:`recbole_idiomoe.training.trainers.get_trainer`.
    """

    model: Place
    options: Place
    trainer: Place | None = None
    dataset: Place = "recbole_idiomoe.data.dataset:WindowDataset"


def _language_model(model: str, options: str) -> Entry:
    return Entry(
        f"recbole_idiomoe.models.{model}",
        f"recbole_idiomoe.models.{options}",
        dataset="recbole_idiomoe.data.dataset:HistoryDataset",
    )


def _baseline(model: str, options: str, **others: str) -> Entry:
    return Entry(f"recbole_idiomoe.models.{model}", f"recbole_idiomoe.models.{options}", **others)


def _untrained(model: str, options: str) -> Entry:
    return _baseline(
        model,
        options,
        dataset="recbole_idiomoe.data.dataset:HistoryDataset",
    )


_CONTROLS = {
    "ItemLLM": "IDIOMoEOptions",
    "IDTransformer": "IDTransformerOptions",
    "TextAttrLLM": "IDIOMoEOptions",
    "TitleLLM": "TitleLLMOptions",
    "IAM": "IDIOMoEOptions",
    "WideFFN": "IDIOMoEOptions",
    "AppendBlocks": "BlockOptions",
    "PrependBlocks": "BlockOptions",
    "LoRALLM": "LoRALLMOptions",
    "MoA": "IDIOMoEOptions",
    "MoT": "IDIOMoEOptions",
    "SwitchRouting": "SwitchRoutingOptions",
}
"""Classes of ``controls/model.py``, each with its options in ``controls/options.py``."""

LANGUAGE_MODELS: dict[str, Entry] = {
    "IDIOMoE": _language_model("language.recommender:IDIOMoE", "language.options:IDIOMoEOptions"),
    **{
        name: _language_model(f"controls.model:{name}", f"controls.options:{options}")
        for name, options in _CONTROLS.items()
    },
    "E4SRec": _language_model("e4srec.model:E4SRec", "e4srec.options:E4SRecOptions"),
    "CoVE": _language_model("cove.model:CoVE", "cove.options:CoVEOptions"),
}
"""Language models with a catalogue: a run's folder is all that they need to be loaded."""

BASELINES: dict[str, Entry] = {
    "Popularity": _untrained(
        "counting.popularity:Popularity", "counting.options:PopularityOptions"
    ),
    "TransitionCounter": _untrained(
        "counting.transition_counter:TransitionCounter", "counting.options:TransitionCounterOptions"
    ),
    "SASRecCE": _baseline("sasrec.model:SASRecCE", "sasrec.options:SASRecCEOptions"),
    "SASRecSS": _baseline("sasrec.model:SASRecSS", "sasrec.options:SASRecSSOptions"),
    "HSTU": _baseline("hstu.model:HSTU", "hstu.options:HSTUOptions"),
    "TIGER": _baseline(
        "tiger.model:TIGER",
        "tiger.options:TIGEROptions",
        dataset="recbole_idiomoe.data.dataset:HistoryDataset",
    ),
}
"""Models that run, are saved and are loaded as RecBole's models are."""

MODELS: dict[str, Entry] = LANGUAGE_MODELS | BASELINES

RECBOLE_FIRST_STAGES = {"S3Rec": "s3rec.first_stage:PretrainingStage"}
"""Models of RecBole's that have a first stage here; a model of ours has it as an attribute."""

_LANGUAGE_OPTIONS = tuple(dict.fromkeys(entry.options for entry in LANGUAGE_MODELS.values()))


def get_model(name: str) -> type[Any]:
    """The recommender called ``name``.

    Raises:
        SettingError: no model has exactly this name, or RecBole's is not sequential.
    """
    check_model(name)
    if name in MODELS:
        return load_place(MODELS[name].model)
    return load_place(f"{_RECBOLE}.{name.lower()}:{name}")


def get_first_stage(name: str) -> Any:
    """The :class:`~recbole_idiomoe.models.first_stage.FirstStage` of model ``name``, or None.

    Raises:
        SettingError: as :func:`get_model`.
    """
    if name in RECBOLE_FIRST_STAGES:
        return load_place(f"recbole_idiomoe.models.{RECBOLE_FIRST_STAGES[name]}")()
    return getattr(get_model(name), "first_stage", None)


def get_dataset_class(name: str) -> type[Any]:
    """The dataset class for model ``name``; RecBole's choice is that of its ``create_dataset``.

    Raises:
        SettingError: as :func:`get_model`.
    """
    check_model(name)
    if name in MODELS:
        return load_place(MODELS[name].dataset)
    module = importlib.import_module("recbole.data.dataset")
    chosen: type[Any] = getattr(module, f"{name}Dataset", module.SequentialDataset)
    return chosen


def get_options(name: str) -> type[Options]:
    """The class of the options that model ``name`` has; that of RecBole's models has none.

    Raises:
        SettingError: as :func:`get_model`.
    """
    check_model(name)
    return load_place(MODELS[name].options) if name in MODELS else Options


def language_options() -> list[type[Options]]:
    """The options of this package's language models, without models that a user registered."""
    return [load_place(place) for place in _LANGUAGE_OPTIONS]


def reads_text(name: str) -> bool:
    """Whether model ``name`` reads items' text as the text options make it; RecBole's do not."""
    return name in MODELS and issubclass(get_options(name), TextOptions)


def is_of_family(name: str) -> bool:
    """Whether model ``name`` is IDIOMoE or a control of it; any other is a baseline to them."""
    return issubclass(get_options(name), IDIOMoEOptions)


def name_of(model_class: type[Any]) -> str | None:
    """The name under which a class can be run; None: it is no model, or an abstract one."""
    name, module = model_class.__name__, model_class.__module__
    if module.startswith(f"{_RECBOLE}."):
        return name if name in sequential_models() else None
    known = name in MODELS and MODELS[name].model in (model_class, f"{module}:{name}")
    return name if known else None


def family(name: str) -> list[str]:
    """Model ``name``, after the models that its class derives from; RecBole's stand alone.

    Raises:
        SettingError: as :func:`get_model`.
    """
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
    near = nearest(name, runnable)
    advice = (
        f"did you mean {near!r}?"
        if near
        else "--list_models names them all, and register_model adds a class of your own."
    )
    raise SettingError(f"unknown model {name!r}; {advice}")


def sequential_models() -> list[str]:
    """Names of RecBole's sequential recommenders, as its package lists them, sorted."""
    return sorted(name for name, kind in _recbole_models().items() if kind == "sequential")


@cache
def _recbole_models() -> dict[str, str]:
    """Every model of RecBole and its kind, read out of the imports of its model packages."""
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
