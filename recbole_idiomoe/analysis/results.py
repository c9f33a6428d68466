"""The result of an analysis, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from recbole_idiomoe.base.environment import device_name, versions

Row = dict[str, str | int | float | None]


@dataclass(kw_only=True)
class Analysis:
    """The result of an analysis of one or several runs, which can be stored as JSON.

    ``Analysis(**json.loads(text))`` reads its JSON file again, and
    :data:`~recbole_idiomoe.analysis.plots.PLOTS` draws it without a model.
    """

    name: str
    """The command, for example ``ffn-memory``; its files are named after it."""
    title: str
    runs: list[dict[str, str]] = field(default_factory=list)
    """Name (``run``), model, dataset and folder name of each run."""
    settings: dict[str, Any]
    tables: dict[str, list[Row]]
    """Tables by name; all rows of a table have the same columns."""
    notes: list[str]
    """Paragraphs on how the values were measured."""
    device: str = ""
    versions: dict[str, str] = field(default_factory=versions)
    command: str = ""
    """The command that the user typed."""
    long_tables: dict[str, list[Row]] = field(default_factory=dict)
    """Tables with too many rows to print, each in a CSV file and not in the JSON file."""

    def add_run(self, about: dict[str, str], device: torch.device) -> None:
        """Enter a run, as in ``runs``, and the device that it was analysed on."""
        self.runs.append(about)
        self.device = device_name(device)
