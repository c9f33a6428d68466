"""Cleaning of metadata texts for atomic files."""

from __future__ import annotations

import html
import re
from typing import Any

LONGEST = 2000
"""Most characters of a title or brand; longer ones are whole web pages."""

_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
# Control and format characters that pandas, csv or a terminal would act on, and surrogates that
# UTF-8 cannot hold.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


def one_line(value: Any) -> str:
    """``value`` as plain text on one line, without entities, tags and control characters.

    The texts of a list are joined by spaces. The result is empty for any other type, and for
    titles of 2018 that are pieces of a web page's script.
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
    if "getTime" in text:  # the mark of such titles according to the dumps' own page
        return ""
    return text[:LONGEST].rstrip()


def category_names(value: Any) -> list[str]:
    """The distinct category names in ``value``: a list, or the nested lists of 2014."""
    names: list[str] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting.extend(reversed(part))
        elif isinstance(part, str):
            names.append(one_line(part).replace("|", "/"))
    return [name for name in dict.fromkeys(names) if name]
