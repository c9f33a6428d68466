"""The output files of a leaderboard, written from the kept runs."""

from __future__ import annotations

from typing import Any

from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.leaderboard.board import Board
from recbole_idiomoe.leaderboard.formats import (
    comma_separated,
    latex,
    markdown,
    plain_text,
    protocol_notes,
    version_note,
)
from recbole_idiomoe.leaderboard.plots import plots_of
from recbole_idiomoe.leaderboard.standings import standings_of
from recbole_idiomoe.leaderboard.tables import Table, table_of
from recbole_idiomoe.report.html import render
from recbole_idiomoe.report.plot_style import NO_MATPLOTLIB


def write_outputs(board: Board) -> dict[str, Any]:
    """Write ``README.md``, ``leaderboard.csv``, ``.tex`` and ``.html`` into the board's folder.

    Returns:
        ``leaderboard``, its folder, ``table``, its text for a terminal, and ``rows``, its values.

    Raises:
        IdiomoeError: a run cannot be read.
    """
    tables = []
    for dataset in board.rows:
        metric = str(board.protocol[dataset]["valid_metric"]).lower()
        tables.append(table_of(dataset, metric, standings_of(board, dataset, metric)))
    notes = [*protocol_notes(board.protocol), version_note(tables)]
    title = f"Leaderboard: {', '.join(table.dataset for table in tables)}"
    plots = {table.dataset: plots_of(table) for table in tables}
    files = {
        "README.md": "\n".join(
            [f"# {title}\n", *map(markdown, tables), "## Protocol\n", "\n\n".join(notes), ""]
        ),
        "leaderboard.csv": comma_separated(tables),
        "leaderboard.tex": "\n".join(
            [
                r"% Needs \usepackage{booktabs}.",
                *(f"% {note}" for note in notes),
                *map(latex, tables),
            ]
        ),
        "leaderboard.html": render(
            "leaderboard/page.html",
            title=title,
            tables=tables,
            notes=notes,
            plots=plots,
            without="" if any(plots.values()) else NO_MATPLOTLIB,
        ),
    }
    for name, text in files.items():
        write_text(board.folder / name, text)
    return {
        "leaderboard": str(board.folder),
        "table": plain_text(tables, [*notes, f"All of it is in {board.folder}."]),
        "rows": [row for table in tables for row in _rows(table)],
    }


def _rows(table: Table) -> list[dict[str, Any]]:
    """The values of the table, for programs."""
    return [
        {
            "dataset": table.dataset,
            "row": s.name,
            "model": s.row.model,
            "ours": s.row.ours,
            "mixed": s.mixed,
            "settings": s.row.own,
            "tuned": s.row.tuned,
            "seeds": sorted(map(int, s.row.runs)),
            "test": {name: s.mean(name) for name in s.metrics},
            "deviation": {name: s.deviation(name) for name in s.metrics},
            "difference": found.difference if (found := table.comparisons.get(s.name)) else None,
            "p": found.p if found else None,
            "failed": s.row.failed,
        }
        for s in table.standings
    ]
