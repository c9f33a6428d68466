"""Queries in words that an item answers, for training (setting ``query_share``).

Some training sequences end in a query that is made from the fields of the item to predict. From
them, the model learns to answer ``recommend(..., query=...)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.catalog import text_entries
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.data.template import Template

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


def item_queries(dataset: Dataset, settings: TextOptions) -> list[list[str]]:
    """Return the queries that each item answers, a list per catalogue row.

    A field with several entries, such as categories, gives one query for each. An item whose
    fields are empty has no queries.

    Raises:
        DataError: the items have no text fields.
        SettingError: a template names an unknown field, or no field.
    """
    fields = text_entries(dataset, settings)
    if not fields:
        raise DataError(
            f"query_share={settings.query_share}: queries are made from the items' text, and there "
            "is none; name its columns in item_text_fields, or set query_share to 0."
        )
    given = settings.query_templates or [f"{{{role}}}" for role in fields]
    templates = [Template(template, list(fields), "query_templates") for template in given]
    rows = [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]
    return [list(dict.fromkeys(q for t in templates for q in _filled(t, row))) for row in rows]


def _filled(template: Template, row: Mapping[str, list[str]]) -> Iterator[str]:
    """``template`` with every combination of entries of the fields that it names."""
    named = {role for _, role in template.clauses}
    choices = {role: entries or [""] for role, entries in row.items() if role in named}
    for values in itertools.product(*choices.values()):
        if query := template(dict(zip(choices, values, strict=True))):
            yield query
