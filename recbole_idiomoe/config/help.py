"""The options of all models, as ``--help`` prints them; needs neither torch nor RecBole."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import Field
from typing import Any

from recbole_idiomoe.base.options import Options, default_of
from recbole_idiomoe.config.options import listed_options
from recbole_idiomoe.models import registry

GROUPS = ("protocol", "evaluation", "text", "model", "training")
"""Headings of options that many models share, in their order; then the models have their own."""


def settings_help(width: int) -> str:
    """Every option of every model, under its heading, at most ``width`` columns wide."""
    sections: dict[str, list[str]] = {f"{group}:": [] for group in GROUPS}
    recipes = []
    for options in _every_class():
        models = ", ".join(name for name in registry.MODELS if _has(name, options))
        heading = vars(options).get("group") or f"{models} (--model={models.split(', ')[0]})"
        for f in options.declared():
            sections.setdefault(f"{heading}:", []).extend(_option_lines(f, width))
        if recipe := vars(options).get("recipe"):
            recipes += _wrapped(f"{models}:", width, 2)
            recipes += _wrapped(
                ", ".join(f"{name}={value!r}" for name, value in recipe.items()), width, 6
            )
    sections["Values that models start from instead of those above or RecBole's own:"] = recipes
    return "\n\n".join(
        "\n".join([*_wrapped(heading, width), *lines]) for heading, lines in sections.items()
    )


def text_settings() -> tuple[set[str], set[str]]:
    """Names of the options that are text, and of those that are text or null."""
    always: set[str] = set()
    or_null: set[str] = set()
    for options in _every_class():
        kinds = options.kinds()
        for f in options.declared():
            if kinds[f.name] == ("str",):
                (or_null if f.metadata["none"] else always).add(f.name)
    return always, or_null


def _every_class() -> Iterator[type[Options]]:
    """The classes of all options, each once, bases first."""
    of_models = [registry.get_options(name) for name in registry.MODELS]
    lines = (kind.__mro__[::-1] for kind in (*listed_options(), *of_models))
    every = dict.fromkeys(kind for line in lines for kind in line if issubclass(kind, Options))
    return iter(every)


def _has(model: str, options: type[Options]) -> bool:
    return issubclass(registry.get_options(model), options)


def _option_lines(f: Field[Any], width: int) -> Sequence[str]:
    default, choices, section = default_of(f), f.metadata["choices"], f.metadata["section"]
    about = f.metadata["help"]
    if choices:
        about += f"; one of {', '.join(map(repr, choices))}"
    if section:
        about += f" [{section}]"
    shown = "null" if default is None else repr(default) if isinstance(default, str) else default
    name = textwrap.wrap(f"--{f.name}={shown}", width - 2, subsequent_indent="    ")
    return [*(f"  {line}" for line in name), *_wrapped(about, width, 6)]


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    space = " " * indent
    return textwrap.wrap(
        text, width, initial_indent=space, subsequent_indent=space, break_long_words=False
    )
