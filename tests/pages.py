"""HTML pages, read strictly."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any


class Elements(HTMLParser):
    """Every start tag and its attributes; refuses tags that are not closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> Elements:
    """The elements of a page that is well formed, needs nothing else, and knows light and dark."""
    elements = Elements(text)
    for tag, attributes in elements.found:
        assert tag not in ("link", "iframe", "img") and "src" not in attributes
        for key in ("href", "xlink:href"):
            assert attributes.get(key, "#").startswith("#"), (tag, attributes)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {found[1:] for found in re.findall(r'href="(#[^"]*)"', text)} <= set(ids)
    assert not re.search(r"@import|url\((?!#)", text)
    assert '<meta name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    # Nothing is black, which a dark ground would hide.
    for svg in re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL):
        assert "currentColor" in svg and not re.search(r"#000000|: ?black", svg)
    return elements
