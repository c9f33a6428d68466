"""Options are read from annotated fields and their docstrings."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.options import Options, PositiveInt, Range


@dataclass(frozen=True)
class Tree(Options):
    height: Annotated[float, Range(0.5, 100.0)] = 2.0
    """Height of the tree,
    in metres."""
    kind: Literal["oak", "fir"] | None = None
    """Kind of the tree."""
    branches: PositiveInt | list[int] | None = None
    names: list[str] = field(default_factory=lambda: ["tree"])
    """Names of the tree."""


@dataclass(frozen=True)
class TallTree(Tree):
    height: Annotated[float, Range(low=50.0)] = 60.0
    leaves: bool = True
    """Whether it has leaves."""


def test_docstrings_are_the_help_of_options_and_are_inherited() -> None:
    helps = {name: option.help for name, option in TallTree.options().items()}
    assert helps == {
        "height": "Height of the tree, in metres.",
        "kind": "Kind of the tree.",
        "branches": "",
        "names": "Names of the tree.",
        "leaves": "Whether it has leaves.",
    }
    assert [option.name for option in TallTree.own()] == ["height", "leaves"]


def test_a_class_without_source_has_options_without_help(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ModuleType("typed_into_an_interpreter")
    monkeypatch.setitem(sys.modules, typed.__name__, typed)
    vars(typed).update(Options=Options, dataclass=dataclass)
    source = "@dataclass(frozen=True)\nclass Box(Options):\n    size: int = 1\n    'Size.'"
    exec(source, vars(typed))
    box = vars(typed)["Box"]
    assert box.options()["size"].help == "" and box().size == 1
    with pytest.raises(SettingError, match=r"size='1' is of the wrong type; int is wanted\.$"):
        box.from_mapping({"size": "1"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"height": True}, "height=True is of the wrong type; float is wanted. Height of the tree"),
        ({"height": None}, "height=None is of the wrong type"),
        ({"height": 0.4}, "height=0.4 is out of range; it must be between 0.5 and 100.0."),
        ({"height": float("nan")}, "height=nan is out of range"),
        ({"kind": "elm"}, "kind='elm' is not one of 'oak', 'fir'."),
        ({"branches": 0}, "branches=0 is out of range; it must be at least 1."),
        ({"branches": "many"}, "branches='many' is of the wrong type; int or list is wanted."),
    ],
)
def test_values_are_checked(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        Tree.from_mapping(values)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_good_values_are_taken_and_others_ignored() -> None:
    given = {"height": 3, "kind": None, "branches": [1, 2], "other": "setting"}
    assert Tree.from_mapping(given) == Tree(height=3, branches=[1, 2])
    assert TallTree.defaults()["height"] == 60.0
    assert Tree.defaults()["names"] is not Tree.defaults()["names"]


def test_a_type_that_no_option_has_is_refused() -> None:
    @dataclass(frozen=True)
    class Wrong(Options):
        size: complex = 1j

    with pytest.raises(TypeError, match="an option is of bool, int"):
        Wrong.options()
