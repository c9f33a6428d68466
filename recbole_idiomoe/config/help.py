"""The text of ``--help`` about the options of all models; needs neither torch nor RecBole."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from recbole_idiomoe.base.options import Option, Options
from recbole_idiomoe.config.options import listed_options
from recbole_idiomoe.models import registry

GROUPS = ("protocol", "evaluation", "text", "model", "training")
"""Headings of options that many models share, in order; options of single models follow."""


def settings_help(width: int) -> str:
    """Every option of every model, under its heading, at most ``width`` columns wide."""
    sections: dict[str, list[str]] = {f"{group}:": [] for group in GROUPS}
    recipes = []
    for options in _every_class():
        models = ", ".join(name for name in registry.MODELS if _has(name, options))
        heading = vars(options).get("group") or f"{models} (--model={models.split(', ')[0]})"
        for option in options.own():
            sections.setdefault(f"{heading}:", []).extend(_option_lines(option, width))
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
    texts = [option for kind in _every_class() for option in kind.own() if option.types == (str,)]
    always = {option.name for option in texts if not option.nullable}
    return always, {option.name for option in texts if option.nullable}


def _every_class() -> Iterator[type[Options]]:
    """All classes of options, each once, bases first."""
    of_models = [registry.get_options(name) for name in registry.MODELS]
    lines = (kind.__mro__[::-1] for kind in (*listed_options(), *of_models))
    every = dict.fromkeys(kind for line in lines for kind in line if issubclass(kind, Options))
    return iter(every)


def _has(model: str, options: type[Options]) -> bool:
    return issubclass(registry.get_options(model), options)


def _option_lines(option: Option, width: int) -> list[str]:
    default = option.owner.defaults()[option.name]
    shown = "null" if default is None else repr(default) if isinstance(default, str) else default
    name = textwrap.wrap(f"--{option.name}={shown}", width - 2, subsequent_indent="    ")
    about = option.help
    if option.choices:
        about += f" One of {', '.join(map(repr, option.choices))}."
    return [*(f"  {line}" for line in name), *_wrapped(about, width, 6)]


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    space = " " * indent
    return textwrap.wrap(
        text, width, initial_indent=space, subsequent_indent=space, break_long_words=False
    )
