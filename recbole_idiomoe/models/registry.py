"""Which classes belong to a model's name, and which data sets have a name.

Ours are in the table below; any other name is one of RecBole's. Nothing heavy
is imported before a class is asked for, and RecBole's names are read out of its
source files: importing all its models needs torch, and lightgbm for some.
"""

from __future__ import annotations

import ast
import importlib
from typing import Any, NamedTuple

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.recbole_package import recbole_folder
from recbole_idiomoe.base.spelling import did_you_mean

_CONTROLS = (
    "ItemLLM",
    "IDTransformer",
    "TextAttrLLM",
    "TitleLLM",
    "IAM",
    "WideFFN",
    "AppendBlocks",
    "PrependBlocks",
    "LoRALLM",
    "MoA",
    "MoT",
    "SwitchRouting",
)


class Entry(NamedTuple):
    """A model of ours: its class, and the dataset that it is run with, as ``module:class``.

    Unless an entry says otherwise, a row is a training window.
    """

    model: str
    dataset: str = "recbole_idiomoe.data.windows:WindowDataset"
    reads_text: bool = False
    """Whether items' texts, and our settings of them and of language models, are for it."""


def _language_model(place: str) -> Entry:
    return Entry(
        f"recbole_idiomoe.models.{place}",
        dataset="recbole_idiomoe.data.dataset:HistoryDataset",
        reads_text=True,
    )


def _untrained(place: str) -> Entry:
    return Entry(
        f"recbole_idiomoe.models.{place}",
        dataset="recbole_idiomoe.data.dataset:HistoryDataset",
    )


LANGUAGE_MODELS: dict[str, Entry] = {
    "IDIOMoE": _language_model("language.recommender:IDIOMoE"),
    **{name: _language_model(f"controls.model:{name}") for name in _CONTROLS},
    "E4SRec": _language_model("e4srec.model:E4SRec"),
    "CoVE": _language_model("cove.model:CoVE"),
}
"""Ours that are a language model with a catalogue: a run's folder is all that they need."""

FAMILY = ("IDIOMoE", *_CONTROLS)
"""IDIOMoE and its controls; every other model is a baseline to them."""

BASELINES: dict[str, Entry] = {
    "Popularity": _untrained("counting.popularity:Popularity"),
    "TransitionCounter": _untrained("counting.transition_counter:TransitionCounter"),
    "SASRecCE": Entry("recbole_idiomoe.models.sasrec.model:SASRecCE"),
    "SASRecSS": Entry("recbole_idiomoe.models.sasrec.model:SASRecSS"),
    "HSTU": Entry("recbole_idiomoe.models.hstu.model:HSTU"),
    "TIGER": Entry(
        "recbole_idiomoe.models.tiger.model:TIGER",
        dataset="recbole_idiomoe.data.dataset:HistoryDataset",
        reads_text=True,
    ),
}
"""Ours that run, are saved and are loaded as RecBole's models are."""

MODELS: dict[str, Entry] = LANGUAGE_MODELS | BASELINES

RECBOLE_FIRST_STAGES = {"S3Rec": "s3rec.first_stage:PretrainingStage"}
"""Models of RecBole's that have a first stage here; a model of ours has it as an attribute."""


def get_model(name: str) -> type[Any]:
    """The recommender called ``name``.

    Raises:
        SettingError: no model has exactly this name, or RecBole's is not sequential.
    """
    check_model(name)
    if name in MODELS:
        return _load(MODELS[name].model)
    return _load(f"recbole.model.sequential_recommender.{name.lower()}:{name}")


def get_first_stage(name: str) -> Any:
    """The :class:`~recbole_idiomoe.models.first_stage.FirstStage` of model ``name``, or None.

    Raises:
        SettingError: as :func:`get_model`.
    """
    if name in RECBOLE_FIRST_STAGES:
        return _load(f"recbole_idiomoe.models.{RECBOLE_FIRST_STAGES[name]}")()
    return getattr(get_model(name), "first_stage", None)


def get_dataset_class(name: str) -> type[Any]:
    """The dataset class for model ``name``; RecBole's choice is that of its ``create_dataset``.

    Raises:
        SettingError: as :func:`get_model`.
    """
    check_model(name)
    if name in MODELS:
        return _load(MODELS[name].dataset)
    module = importlib.import_module("recbole.data.dataset")
    chosen: type[Any] = getattr(module, f"{name}Dataset", module.SequentialDataset)
    return chosen


def reads_text(name: str) -> bool:
    """Whether item text as our settings make it is for model ``name``; RecBole's know none."""
    return name in MODELS and MODELS[name].reads_text


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
    raise SettingError(f"unknown model {name!r}{did_you_mean(name, runnable, '--list_models')}")


def sequential_models() -> list[str]:
    """Names of RecBole's sequential recommenders, as its package lists them, sorted."""
    return sorted(name for name, kind in _recbole_models().items() if kind == "sequential")


def _recbole_models() -> dict[str, str]:
    """Every model of RecBole and its kind, read out of the imports of its model packages."""
    models: dict[str, str] = {}
    for package in sorted((recbole_folder() / "model").glob("*_recommender/__init__.py")):
        kind = package.parent.name.removesuffix("_recommender").replace("_", "-")
        for node in ast.parse(package.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                models.update({alias.asname or alias.name: kind for alias in node.names})
    return models


def _load(place: str) -> type[Any]:
    module, name = place.split(":")
    loaded: type[Any] = getattr(importlib.import_module(module), name)
    return loaded
