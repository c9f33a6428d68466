"""Options of a method: annotated fields of a dataclass, each with a docstring.

A method declares its options beside its code, in a file that needs neither torch nor RecBole::

    expert_width: Annotated[float, Range(0.01, 1.0)] = 1.0
    \"\"\"Width of the item expert relative to the text expert [section 4.2.2].\"\"\"

The type says which values are allowed: ``Literal`` for choices, ``| None`` for null. ``--help``,
the check of what a user gives and the values of a run are made from these classes.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args, get_origin

from recbole_idiomoe.base.errors import SettingError


class Range(NamedTuple):
    """The smallest and the largest value of a number; None: no limit."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number is finite and inside the range."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low <= value <= high and abs(value) != math.inf

    def __str__(self) -> str:
        if self.low is None:
            return "a finite number" if self.high is None else f"at most {self.high}"
        return (
            f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"
        )


PositiveInt = Annotated[int, Range(low=1)]
NonNegativeInt = Annotated[int, Range(low=0)]
NonNegativeFloat = Annotated[float, Range(low=0.0)]
Share = Annotated[float, Range(0.0, 1.0)]

_TYPES: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    list: (list, tuple),
    dict: (dict,),
}
"""The types that an option can have, each with the types of the values that it takes."""


class Option(NamedTuple):
    """One option, as its annotation describes it."""

    owner: type[Options]
    name: str
    types: tuple[type, ...]
    nullable: bool
    choices: tuple[str, ...]
    range: Range

    @classmethod
    def read(cls, owner: type[Options], name: str, hint: Any) -> Option:
        """The option ``name`` of the class ``owner``, whose annotation is ``hint``.

        Raises:
            TypeError: an option cannot have this type.
        """
        is_union = get_origin(hint) in (typing.Union, types.UnionType)
        parts = list(get_args(hint) if is_union else [hint])
        choices: tuple[str, ...] = ()
        limits = Range()
        for i, part in enumerate(parts):
            if get_origin(part) is Annotated:
                parts[i], limits = get_args(part)
            elif get_origin(part) is Literal:
                parts[i], choices = str, get_args(part)
        kinds = tuple(get_origin(part) or part for part in parts if part is not types.NoneType)
        if not set(kinds) <= _TYPES.keys():
            known = ", ".join(kind.__name__ for kind in _TYPES)
            raise TypeError(f"an option is of {known}, or several of them, not {hint}.")
        return cls(owner, name, kinds, types.NoneType in parts, choices, limits)

    @property
    def help(self) -> str:
        """The docstring below the option, on one line; empty if its class has no source file."""
        documented = (_docstrings(kind) for kind in self.owner.__mro__)
        return next((docs[self.name] for docs in documented if self.name in docs), "")

    def check(self, value: Any) -> None:
        """Raise a one-line :class:`SettingError` unless the option can have ``value``."""
        if value is None and self.nullable:
            return
        given = f"{self.name}={value!r}"
        accepted: Any = tuple(kind for wanted in self.types for kind in _TYPES[wanted])
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in self.types):
            wanted = " or ".join(kind.__name__ for kind in self.types)
            raise SettingError(
                f"{given} is of the wrong type; {wanted} is wanted. {self.help}".rstrip()
            )
        if self.choices and value not in self.choices:
            raise SettingError(f"{given} is not one of {', '.join(map(repr, self.choices))}.")
        if isinstance(value, int | float) and not self.range.holds(value):
            raise SettingError(f"{given} is out of range; it must be {self.range}.")


@dataclass(frozen=True)
class Options:
    """The options of one method, checked. A subclass is a frozen dataclass too.

    A method that has the options of another and more derives its class from the other's.
    """

    group: ClassVar[str] = ""
    """Heading of the options in ``--help``; empty: the names of the models that have them."""
    recipe: ClassVar[Mapping[str, Any]] = {}
    """Other values that the method starts from, of RecBole's settings or of inherited options."""
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
        given = {name: values[name] for name in cls.options() if name in values}
        for name, value in given.items():
            cls.options()[name].check(value)
        return given

    @classmethod
    @cache
    def options(cls) -> Mapping[str, Option]:
        """Every option, by name."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return {f.name: Option.read(cls, f.name, hints[f.name]) for f in fields(cls)}

    @classmethod
    def own(cls) -> list[Option]:
        """The options that this class declares and its bases do not."""
        declared = inspect.get_annotations(cls)
        return [option for name, option in cls.options().items() if name in declared]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every option's default, by name; lists and dicts are new each time."""
        return {
            f.name: f.default_factory() if callable(f.default_factory) else f.default
            for f in fields(cls)
        }

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


@cache
def _docstrings(cls: type[Any]) -> dict[str, str]:
    """The string below each annotated attribute in the source of ``cls``, on one line."""
    try:
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):  # no source, or a nested class that cannot be cut out
        return {}
    docs = {}
    for attribute, below in pairwise(tree.body):
        match attribute, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                docs[name] = " ".join(text.split())
    return docs
