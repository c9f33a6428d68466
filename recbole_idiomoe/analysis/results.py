"""What an analysis found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Analysis:
    """Of one or several runs. All of it is plain data, so that its JSON file holds it whole.

    ``Analysis(**json.loads(text))`` reads such a file again, and
    :data:`~recbole_idiomoe.analysis.pictures.PICTURES` draws it without any model.
    """

    name: str
    """The command, as ``ffn-memory``; files are named after it."""
    title: str
    runs: list[dict[str, str]]
    """Of each its ``run``, which rows name it by, and its model, dataset and folder's name."""
    settings: dict[str, Any]
    tables: dict[str, list[Row]]
    """By name; rows of a table have the same columns."""
    notes: list[str]
    """What a reader has to know of how it was measured, a paragraph each."""
    device: str
    versions: dict[str, str]
    command: str = ""
    """What was typed."""
    long_tables: dict[str, list[Row]] = field(default_factory=dict)
    """Tables of too many rows to print; they have a CSV file each and are not in the JSON."""
