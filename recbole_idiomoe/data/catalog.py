"""The catalogue: the ids, titles and texts of all items, and the queries that they answer."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_idiomoe.base.errors import CheckpointError, DataError, SettingError, short_reason
from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.data.cold_start import unseen_items
from recbole_idiomoe.data.item_text import item_entries
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.data.template import Template, clean

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

FILE_NAME = "catalog.json"


@dataclass(frozen=True)
class Catalog:
    """The items in RecBole's order: row ``i`` is RecBole's internal item ``i``.

    Row 0 is RecBole's padding item. It has no text and is never recommended.
    """

    item_ids: list[str]
    """Ids of the items in the data set's files."""
    titles: list[str]
    """The first text field of each item, for display; empty if it has none."""
    texts: list[str]
    """The templated text that the language model reads; empty if an item has none."""
    untrained: list[int] = field(default_factory=list)
    """Rows that were not trained: held out for a cold start, or added after training."""

    @property
    def item_num(self) -> int:
        """Number of rows, the padding item included (RecBole's ``item_num``)."""
        return len(self.item_ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the item ids and texts in order, and over the untrained rows."""
        digest = hashlib.sha256()
        for item_id, text in zip(self.item_ids, self.texts, strict=True):
            digest.update(f"{item_id}\x1f{text}\x1e".encode("utf-8", "surrogatepass"))
        if self.untrained:
            digest.update(repr(self.untrained).encode())
        return digest.hexdigest()

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids) if row > 0}

    def rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """The rows of the items with the given ids, shape ``(n,)``.

        Raises:
            DataError: ``item_ids`` is not a list, or an item is not in the catalogue.
        """
        check_history(item_ids)
        names = [str(item_id) for item_id in item_ids]
        if unknown := [name for name in names if name not in self._index]:
            shown = ", ".join(f"{name!r:.60}" for name in unknown[:5])
            more = " ..." if len(unknown) > 5 else ""
            raise DataError(
                f"{len(unknown)} of {len(names)} items are not in the catalogue of "
                f"{self.item_num - 1}: {shown}{more}; use the item ids of the dataset's files."
            )
        return np.array([self._index[name] for name in names], dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write the catalogue into ``folder`` atomically."""
        content = {"fingerprint": self.fingerprint, **asdict(self)}
        write_text(folder / FILE_NAME, json.dumps(content, ensure_ascii=True))

    @classmethod
    def load(cls, folder: Path) -> Catalog:
        """Read the catalogue of a saved model.

        Raises:
            CheckpointError: there is no catalogue in ``folder``, or it was altered.
        """
        path = folder / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            fingerprint = content.pop("fingerprint")
            catalog = cls(**content)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is no catalogue ({short_reason(error)}); give the folder of a model "
                "that this package saved."
            ) from error
        if catalog.fingerprint != fingerprint:
            raise CheckpointError(f"{path} was altered: its fingerprint does not match its items.")
        return catalog


def check_history(history: Any) -> None:
    """Raise a :class:`DataError` unless ``history`` is a list."""
    if not isinstance(history, list | tuple | np.ndarray):
        what = "one string" if isinstance(history, str) else "no list"
        raise DataError(f"history={history!r:.60} is {what}; give a list of item ids.")


def read_history(text: str, where: str) -> list[str]:
    """Parse item ids of the form ``ID,ID``; an id with a comma is quoted, as in a CSV file.

    Raises:
        DataError: quotes are not paired; the message names ``where`` the text comes from.
    """
    try:
        item_ids = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise DataError(
            f"{where}: {text!r:.60} cannot be read ({error}); ids that hold a comma or start with "
            'a quote are written as in a CSV file: "a, b","""c"" d".'
        ) from error
    return [item_id.strip() for item_id in item_ids if item_id.strip()]


def read_catalog(dataset: Dataset, settings: TextOptions) -> Catalog:
    """The catalogue of a RecBole dataset, with texts from ``settings.item_template``.

    Raises:
        SettingError: a text field was not loaded, or the template does not fit the fields.
    """
    item_ids = [str(item_id) for item_id in dataset.field2id_token[dataset.iid_field]]
    untrained = unseen_items(dataset).tolist()
    fields = text_entries(dataset, settings)
    if not fields:
        return Catalog(item_ids, [""] * len(item_ids), [""] * len(item_ids), untrained)
    template = Template(settings.item_template, list(fields))
    columns = [map(", ".join, entries) for entries in fields.values()]
    rows = list(zip(*columns, strict=True))
    texts = [template(dict(zip(fields, row, strict=True))) for row in rows]
    return Catalog(item_ids, [clean(row[0]) for row in rows], texts, untrained)


def item_queries(dataset: Dataset, settings: TextOptions) -> list[list[str]]:
    """Return the queries in words that each item answers, a list per catalogue row.

    With the setting ``query_share``, some training sequences end in such a query, which is made
    from the fields of the item to predict. From them, the model learns to answer
    ``recommend(..., query=...)``. A field with several entries, such as categories, gives one
    query for each. An item whose fields are empty has no queries.

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
    rows = (dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True))
    found = ([query for template in templates for query in _filled(template, row)] for row in rows)
    return [list(dict.fromkeys(queries)) for queries in found]


def _filled(template: Template, row: Mapping[str, list[str]]) -> Iterator[str]:
    """``template`` with every combination of entries of the fields that it names."""
    named = {role for _, role in template.clauses}
    choices = {role: entries or [""] for role, entries in row.items() if role in named}
    for values in itertools.product(*choices.values()):
        if query := template(dict(zip(choices, values, strict=True))):
            yield query


def text_fields(settings: TextOptions) -> dict[str, str]:
    """``item_text_fields`` as ``{role: column}``; in a list, the role is the column's name."""
    fields = settings.item_text_fields or {}
    return dict(fields if isinstance(fields, dict) else zip(fields, fields, strict=True))


def text_entries(dataset: Dataset, settings: TextOptions) -> dict[str, list[list[str]]]:
    """The entries of every item, by role; a list of phrases has several, other fields at most one.

    They are what the file says, see :func:`~recbole_idiomoe.data.item_text.item_entries`.

    Raises:
        SettingError: a text field was not loaded.
    """
    fields = text_fields(settings)
    if not fields:
        return {}
    for column in fields.values():
        if dataset.item_feat is None or column not in dataset.item_feat:
            loaded = [] if dataset.item_feat is None else list(dataset.item_feat.columns)
            raise SettingError(
                f"item_text_fields names the column {column!r}, which was not loaded from "
                f"{dataset.dataset_name}.item (loaded: {', '.join(loaded) or 'none'}); add it to "
                "load_col.item, or set item_text_fields."
            )
    entries = item_entries(dataset, list(dict.fromkeys(fields.values())))
    return {role: entries[column] for role, column in fields.items()}
