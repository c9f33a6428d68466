"""What a user may ask for in words, so that an item is the answer (setting ``query_share``).

Some training sequences end in such a query, made from the fields of the item to be predicted, so
that ``recommend(..., query=...)`` finds a model that has learnt what a query is for.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.catalog import text_entries
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.data.template import Template

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


def item_queries(dataset: Dataset, settings: TextOptions) -> list[list[str]]:
    """The queries that each item answers, per catalogue row; none where its fields are empty.

    A field with several entries, as categories, makes a query of each.

    Raises:
        DataError: there are no text fields to make queries from.
        SettingError: a template that names another field, or none.
    """
    fields = text_entries(dataset, settings)
    if not fields:
        raise DataError(
            f"query_share={settings.query_share}: queries are made from the items' text, and there "
            "is none; name its columns in item_text_fields, or set query_share to 0."
        )
    given = settings.query_templates or [f"{{{role}}}" for role in fields]
    templates = [Template(template, list(fields), "query_templates") for template in given]
    rows = zip(*fields.values(), strict=True)
    return [
        list(dict.fromkeys(query for t in templates for query in _fill(t, list(fields), row)))
        for row in rows
    ]


def _fill(template: Template, roles: list[str], row: tuple[list[str], ...]) -> list[str]:
    """``template`` with every combination of entries of the fields that it names."""
    named = {role for _, role in template.clauses}
    choices = [
        (entries or [""]) if role in named else [""]
        for role, entries in zip(roles, row, strict=True)
    ]
    filled = (
        template(dict(zip(roles, values, strict=True))) for values in itertools.product(*choices)
    )
    return [query for query in filled if query]
