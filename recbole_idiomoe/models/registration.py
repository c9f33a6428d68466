"""Models that a user defines: their names become known to runs, tuning, tables and ``load``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.options import Options
from recbole_idiomoe.models import registry
from recbole_idiomoe.models.registry import Entry

Model = TypeVar("Model", bound=type[Any])

_ABSTRACT = {
    "recbole_idiomoe.models.language.recommender:LanguageModelRecommender": Entry(
        "",
        "recbole_idiomoe.models.language.options:LanguageModelOptions",
        dataset=registry.MODELS["IDIOMoE"].dataset,
    ),
    "recbole_idiomoe.models.counting.model:UntrainedRecommender": Entry(
        "", Options, dataset=registry.MODELS["Popularity"].dataset
    ),
    "recbole_idiomoe.models.next_item:NextItemRecommender": Entry("", Options),
    "recbole.model.abstract_recommender:SequentialRecommender": Entry(
        "", Options, dataset="recbole_idiomoe.data.recbole_datasets:SequentialDataset"
    ),
}
"""Entries for classes that derive from no model with a name, by their abstract base."""

_registered: set[str] = set()


def register_model(
    model_class: Model,
    *,
    options: type[Options] | None = None,
    trainer: type[Any] | None = None,
    dataset: type[Any] | None = None,
) -> Model:
    """Make ``model_class`` a model that ``--model`` takes by its name, in this process.

    Arguments that are left out are those of the model that the class derives from. A leaderboard
    identifies a model by its name and its options: rename a class there after changing its code.

    Args:
        model_class: a subclass of RecBole's ``SequentialRecommender``.
        options: a frozen dataclass that derives from :class:`~recbole_idiomoe.base.options.Options`
            and declares the settings that the class reads in addition to RecBole's, as
            ``hidden_size: PositiveInt = 64``. ``--help`` shows the docstring below each of them.
        trainer: a subclass of RecBole's ``Trainer``.
        dataset: the class of the training data, a subclass of RecBole's ``Dataset`` and of
            :class:`~recbole_idiomoe.data.times.TimeOrdered`, so that it has the order of time that
            all models have.

    Returns:
        ``model_class``, so that the function can be used as a decorator.

    Raises:
        SettingError: the class is no sequential recommender, its name is taken, ``options`` is not
            a frozen dataclass that derives from ``Options``, or ``dataset`` is not ordered by time.
    """
    from recbole.model.abstract_recommender import SequentialRecommender

    from recbole_idiomoe.data.times import TimeOrdered

    name = getattr(model_class, "__name__", repr(model_class))
    if not isinstance(model_class, type) or not issubclass(model_class, SequentialRecommender):
        raise SettingError(f"{name} cannot be registered: it is no SequentialRecommender.")
    if name not in _registered and name in [*registry.MODELS, *registry.sequential_models()]:
        raise SettingError(f"{name} cannot be registered: a model has this name; give another.")
    if options is not None and not (
        isinstance(options, type)
        and issubclass(options, Options)
        and "__dataclass_params__" in vars(options)
    ):
        raise SettingError(
            f"{name} cannot be registered: its options must be a class that derives from Options, "
            "under @dataclass(frozen=True)."
        )
    if dataset is not None and not issubclass(dataset, TimeOrdered):
        raise SettingError(
            f"{name} cannot be registered: write its dataset as class {dataset.__name__}("
            "recbole_idiomoe.data.times.TimeOrdered, SequentialDataset), for the order of time."
        )
    entry = _inherited(model_class)
    given = {"model": model_class, "options": options, "trainer": trainer, "dataset": dataset}
    _enter(name, entry._replace(**{part: kind for part, kind in given.items() if kind}))
    return model_class


def places_of(models: Iterable[str]) -> dict[str, dict[str, str]]:
    """Where another process finds the classes of registered ``models``, for :func:`restore`.

    Raises:
        SettingError: a class was not defined at the top of a module that can be imported.
    """
    return {
        name: {
            part: _place(name, kind)
            for part, kind in registry.MODELS[name]._asdict().items()
            if kind is not None
        }
        for name in models
        if name in _registered
    }


def restore(places: Mapping[str, Mapping[str, str]]) -> None:
    """Register the models that :func:`places_of` found in another process."""
    for name, parts in places.items():
        _enter(name, Entry(**parts))


def _enter(name: str, entry: Entry) -> None:
    from recbole_idiomoe.models.language.recommender import LanguageModelRecommender

    _registered.add(name)
    registry.MODELS[name] = entry
    is_language_model = issubclass(registry.get_model(name), LanguageModelRecommender)
    tables = (registry.BASELINES, registry.LANGUAGE_MODELS)
    tables[is_language_model][name] = entry
    tables[not is_language_model].pop(name, None)


def _inherited(model_class: type[Any]) -> Entry:
    """The entry of the nearest base class that has one."""
    for base in model_class.__mro__[1:]:
        if (name := registry.name_of(base)) in registry.MODELS:
            return registry.MODELS[name]
        if name is not None:
            return Entry("", Options, dataset=registry.get_dataset_class(name))
        if (place := f"{base.__module__}:{base.__name__}") in _ABSTRACT:
            return _ABSTRACT[place]
    raise AssertionError(f"{model_class} is no SequentialRecommender.")


def _place(model: str, kind: registry.Place) -> str:
    if isinstance(kind, str):
        return kind
    if kind.__module__ == "__main__" or "." in kind.__qualname__:
        raise SettingError(
            f"jobs: {model} is run in processes of their own, which cannot import {kind.__name__}; "
            "define it at the top of a module's file, or leave jobs out."
        )
    return f"{kind.__module__}:{kind.__qualname__}"
