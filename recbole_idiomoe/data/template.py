"""The text of an item: a template filled with the item's fields (paper, section 3.1, c)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter

from recbole_idiomoe.base.errors import SettingError

# The printed form of a Python list or set, as in RecBole's Amazon files. The brackets of a title,
# such as "(500) Days of Summer (2009)", have no quotes inside.
_PRINTED_LIST = re.compile(r"""^[\[{(]\s*(|['"].*['"]),?\s*[\]})]$""", re.DOTALL)
_SPACE = re.compile(r"\s+")


class Template:
    """A template such as ``"title: {title}, category: {category}"``, called with an item's fields.

    A placeholder and the words before it form a clause. Clauses with an empty value are left out,
    so that an item without a category gives ``title: X``, and one without any field gives ``""``.

    Raises:
        SettingError: the template is malformed, or names a role that is not in ``roles``.
    """

    def __init__(self, template: str, roles: list[str], setting: str = "item_template") -> None:
        try:
            parsed = [(words, role) for words, role, _, _ in Formatter().parse(template)]
        except ValueError as error:
            raise SettingError(f"{setting}={template!r} cannot be read: {error}.") from error
        self.tail = "".join(words for words, role in parsed if role is None)
        self.clauses = [(words, role) for words, role in parsed if role is not None]
        unknown = [role for _, role in self.clauses if role not in roles]
        if unknown or not self.clauses:
            named = repr(unknown[0]) if unknown else "no field"
            raise SettingError(
                f"{setting}={template!r} names {named}; item_text_fields offers: "
                f"{', '.join(roles)}."
            )

    def __call__(self, values: Mapping[str, str]) -> str:
        """Fill the template with values by role."""
        filled = [(words, value) for words, role in self.clauses if (value := clean(values[role]))]
        if not filled:
            return ""
        text = "".join(words + value for words, value in filled)
        if filled[0][0] != self.clauses[0][0]:
            text = text.lstrip(" ,;|-")  # the first clause needs no separator in front
        return text + self.tail


def clean(value: str) -> str:
    """Put ``value`` on one line and remove the brackets and quotes of a printed list."""
    value = _SPACE.sub(" ", value).strip()
    if match := _PRINTED_LIST.match(value):
        value = ", ".join(part.strip().strip("'\"") for part in match[1].split(","))
    return value
