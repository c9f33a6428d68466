"""Options of a method: dataclass fields that know their meaning and their range.

A method declares its options beside its code, in a file that needs neither torch nor RecBole.
``--help``, the check of what a user gives and the values of a run are made from these classes.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Self

from recbole_idiomoe.base.errors import SettingError


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    none: bool = False,
    section: str = "",
) -> Any:
    """A dataclass field of an :class:`Options` class.

    Args:
        default: the value where a user gives none.
        help: the meaning, for ``--help`` and for error messages.
        choices: the values that are allowed; None: any.
        low, high: the range of a number, both ends included.
        none: whether the value may be null.
        section: where the method's paper describes it, as ``"section 4.2.2"``.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "none": none}
    metadata["section"] = section
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """The options of one method, checked. A subclass is a frozen dataclass too.

    A method whose options are those of another and more derives its class from the other's.
    """

    group: ClassVar[str] = ""
    """Heading of the options in ``--help``; empty: the names of the models that have them."""
    recipe: ClassVar[Mapping[str, Any]] = {}
    """Settings of RecBole, or inherited options, that the method starts from other values of."""
    search_space: ClassVar[Mapping[str, Any] | None] = None
    """What ``--tune`` tries, by setting; empty: nothing; None: what every model has in common."""

    def __post_init__(self) -> None:
        """Check options against each other; an override calls ``super().__post_init__()``."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """The options among ``values``, which may hold other settings too.

        Raises:
            SettingError: a value of the wrong type, outside its range, or that does not go with
                another.
        """
        return cls(**cls.checked(values))

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The options among ``values``, each checked by itself.

        Raises:
            SettingError: a value of the wrong type, or outside its range.
        """
        kinds = cls.kinds()
        return {
            f.name: _checked(f, kinds[f.name], values[f.name])
            for f in fields(cls)
            if f.name in values
        }

    @classmethod
    def kinds(cls) -> dict[str, tuple[str, ...]]:
        """The types of every option, as ``("str", "list")``; null is not among them."""
        hints = typing.get_type_hints(cls)
        return {f.name: _names(hints[f.name]) for f in fields(cls)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every option's default, by name."""
        return {f.name: default_of(f) for f in fields(cls)}

    @classmethod
    def declared(cls) -> list[Field[Any]]:
        """The options that this class has and its bases have not."""
        own = inspect.get_annotations(cls)
        return [f for f in fields(cls) if f.name in own]

    @classmethod
    def layers(cls) -> list[tuple[str, dict[str, Any]]]:
        """Recipe and search space of each class of the family, its name first; later ones win."""
        layers = []
        for kind in reversed(cls.__mro__):
            content = dict(vars(kind).get("recipe", {}))
            if (space := vars(kind).get("search_space")) is not None:
                content["search_space"] = space
            if content:
                layers.append((kind.__name__, content))
        return layers


def default_of(f: Field[Any]) -> Any:
    """The default of an option, a new list or dict each time."""
    return f.default_factory() if callable(f.default_factory) else f.default


_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list, tuple),
    "dict": (dict,),
}


def _names(hint: Any) -> tuple[str, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    else:
        parts = [hint]
    names = tuple((typing.get_origin(part) or part).__name__ for part in parts)
    if not set(names) <= _TYPES.keys():
        raise TypeError(f"an option is of {', '.join(_TYPES)}, or several of them, not {hint}.")
    return names


def _checked(f: Field[Any], wanted: tuple[str, ...], value: Any) -> Any:
    """``value`` if the option ``f`` can take it, else a one-line :class:`SettingError`."""
    meta = f.metadata
    if value is None and meta["none"]:
        return None
    accepted = tuple(kind for name in wanted for kind in _TYPES[name])
    if not isinstance(value, accepted) or (isinstance(value, bool) and "bool" not in wanted):
        raise SettingError(
            f"{f.name}={value!r} is of the wrong type; {' or '.join(wanted)} is wanted: "
            f"{meta['help']}."
        )
    if meta["choices"] and value not in meta["choices"]:
        raise SettingError(
            f"{f.name}={value!r} is not one of {', '.join(map(repr, meta['choices']))}."
        )
    low, high = meta["low"], meta["high"]
    too_low, too_high = low is not None and value < low, high is not None and value > high
    if too_low or too_high or (isinstance(value, float) and not math.isfinite(value)):
        raise SettingError(f"{f.name}={value} is out of range; it must be {_span(low, high)}.")
    return value


def _span(low: float | None, high: float | None) -> str:
    if low is None:
        return "a finite number" if high is None else f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"
