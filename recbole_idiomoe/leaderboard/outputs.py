"""The files that a leaderboard is read in, written anew from the runs that are kept."""

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
from recbole_idiomoe.leaderboard.page import page
from recbole_idiomoe.leaderboard.plots import pictures
from recbole_idiomoe.leaderboard.standings import standings_of
from recbole_idiomoe.leaderboard.tables import Table, table_of


def write_outputs(board: Board) -> dict[str, Any]:
    """Write ``README.md``, ``leaderboard.csv``, ``.tex`` and ``.html`` into the board's folder.

    Each is written aside and renamed, so that an interruption leaves whole files.

    Returns:
        What :func:`recbole_idiomoe.leaderboard.running.run_leaderboard` returns.

    Raises:
        IdiomoeError: runs that cannot be read, or do not compare.
    """
    tables = [_table(board, dataset) for dataset in board.rows]
    notes = [*protocol_notes(board.protocol), version_note(tables)]
    title = f"Leaderboard: {', '.join(table.dataset for table in tables)}"
    files = {
        "README.md": "\n".join(
            [f"# {title}\n", *map(markdown, tables), "## Protocol\n", "\n\n".join(notes), ""]
        ),
        "leaderboard.csv": comma_separated(tables),
        "leaderboard.tex": "\n".join(
            ["% Needs \\usepackage{booktabs}.", *(f"% {note}" for note in notes)]
            + [latex(table) for table in tables]
        ),
        "leaderboard.html": page(
            title, tables, notes, {table.dataset: pictures(table) for table in tables}
        ),
    }
    for name, text in files.items():
        write_text(board.folder / name, text)
    return {
        "leaderboard": str(board.folder),
        "table": plain_text(tables, [*notes, f"All of it is in {board.folder}."]),
        "rows": [row for table in tables for row in _rows(table)],
    }


def _table(board: Board, dataset: str) -> Table:
    metric = str(board.protocol[dataset]["valid_metric"]).lower()
    return table_of(dataset, metric, standings_of(board, dataset, metric))


def _rows(table: Table) -> list[dict[str, Any]]:
    """The table for programs."""
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
