"""Texts of the metadata as an atomic file can hold them."""

from __future__ import annotations

import html
import re
from typing import Any

LONGEST = 2000
"""Characters that are kept of a title or a brand; longer ones are whole web pages."""

_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
# Control and format characters that pandas, csv or a terminal would act on, and surrogates that
# UTF-8 cannot hold.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


def one_line(value: Any) -> str:
    """``value`` as plain text on one line: entities resolved, tags and control characters gone.

    A list is its texts, joined by a space; what is neither is empty, and so is a title of 2018
    that is a piece of the web page's script.
    """
    if isinstance(value, list | tuple):
        value = " ".join(part for part in value if isinstance(part, str))
    if not isinstance(value, str):
        return ""
    text = value[: 100 * LONGEST]
    for _ in range(3):  # some were escaped twice: &amp;amp;
        if "&" not in text:
            break
        text = html.unescape(text)
    text = _SPACE.sub(" ", _UNFIT.sub(" ", _TAG.sub(" ", text))).strip()
    if "getTime" in text:  # how the dumps' own page says to find such titles
        return ""
    return text[:LONGEST].rstrip()


def category_names(value: Any) -> list[str]:
    """The names in ``value``, each once: a list, or the nested paths of 2014 one after another."""
    names: list[str] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting.extend(reversed(part))
        elif isinstance(part, str):
            names.append(one_line(part).replace("|", "/"))
    return [name for name in dict.fromkeys(names) if name]
