"""The output files of a leaderboard, written from the kept runs, and its text for a terminal."""

from __future__ import annotations

import json
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.leaderboard.board import Board
from recbole_idiomoe.leaderboard.plots import plots_of
from recbole_idiomoe.leaderboard.standings import standings_of
from recbole_idiomoe.leaderboard.tables import (
    COMPARISONS,
    DEVICE,
    MARKS,
    Table,
    is_cost,
    table_of,
)
from recbole_idiomoe.models.registry import what_is_trained
from recbole_idiomoe.report.formatting import (
    aligned,
    fits,
    markdown_table,
    protocol_line,
    wrap_names,
    wrapped,
)
from recbole_idiomoe.report.html import render
from recbole_idiomoe.report.plot_style import NO_MATPLOTLIB

_IN_MARKDOWN = str.maketrans({"|": r"\|", "*": r"\*", "\n": " "})
_IN_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "[": "{[}",  # at the start of a row, LaTeX would read it as an argument of \\
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
        "†": r"$\dagger$",
        "\n": " ",
    }
)
_NOT_PRINTED = ("kind", "published", "eval s", "epochs", "MiB", "seeds", "settings", DEVICE)


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
    protocol = "\n\n".join(["## Protocol", *notes]) + "\n"
    comments = "\n".join(f"% {line}" for line in (r"Needs \usepackage{booktabs}.", *notes))
    files = {
        "README.md": "\n".join([f"# {title}\n", *map(markdown, tables), protocol]),
        "leaderboard.csv": comma_separated(tables),
        "leaderboard.tex": "\n".join([comments, *map(latex, tables)]),
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
            "label": s.label,
            "kind": s.kind,
            "ours": s.row.ours,
            "mixed": s.mixed,
            "settings": s.row.own,
            "tuned": s.row.tuned,
            "seeds": sorted(map(int, s.row.runs)),
            "test": {name: s.mean(name) for name in s.metrics},
            "deviation": {name: s.deviation(name) for name in s.metrics},
            "standard_error": {name: s.standard_error(name) for name in s.metrics},
            "difference": found.difference if (found := table.comparisons.get(s.name)) else None,
            "p": found.p if found else None,
            "difference_from_idiomoe": own.difference
            if (own := table.from_idiomoe.get(s.name))
            else None,
            "p_from_idiomoe": own.p if own else None,
            "runs_at_last_epoch": s.at_limit,
            "failed": s.row.failed,
        }
        for s in table.standings
    ]


def protocol_notes(protocols: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What all data sets share of the protocol, then what differs by data set."""
    first, *others = protocols.values() or [{}]
    shared = {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
    notes = [f"Protocol: {protocol_line(shared)}"]
    for dataset, found in protocols.items():
        if own := {name: value for name, value in found.items() if name not in shared}:
            notes.append(f"{dataset}: {protocol_line(own)}")
    return notes


def version_note(tables: Sequence[Table]) -> str:
    """The versions of Python and of the packages that the runs used."""
    found: dict[str, list[str]] = defaultdict(list)
    for run in (run for table in tables for s in table.standings for run in s.runs):
        for name, version in run["versions"].items():
            if version not in found[name]:
                found[name].append(version)
    listed = (f"{name} {' and '.join(versions)}" for name, versions in found.items())
    return f"Versions: {', '.join(listed)}."


def markdown(table: Table) -> str:
    """A section with the table of metrics, the table of costs, and the notes."""
    notes = "\n".join(f"- {note.translate(_IN_MARKDOWN)}" for note in table.notes)
    marks = {"best": "**{}**", "second": "<u>{}</u>"}
    parts = [markdown_table(_texts(part, _IN_MARKDOWN, marks)) for part in _in_two(table)]
    return "\n\n".join([f"## {table.dataset}", *parts, f"{notes}\n"])


def latex(table: Table) -> str:
    """A LaTeX float (package booktabs) of both tables, with the notes as its caption."""
    caption = f"{table.dataset}. {' '.join(table.notes)}".translate(_IN_LATEX)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            "\n\\medskip\n".join(map(_tabular, _in_two(table))) + rf"\caption{{{caption}}}",
            r"\end{table}",
            "",
        ]
    )


def _tabular(table: Table) -> str:
    marks = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
    header, *rows = _texts(table, _IN_LATEX, marks)
    rendered = pd.DataFrame(rows, columns=header).style.hide(axis="index")
    return rendered.to_latex(hrules=True, column_format="l" + "r" * (len(header) - 1))


def _in_two(table: Table) -> list[Table]:
    """The columns of metrics; and the columns of costs, without the rows of mixes."""
    costs = table.with_columns(is_cost)
    rows = [row for row, s in zip(costs.rows, costs.standings, strict=True) if not s.mixed]
    return [table.with_columns(lambda title: not is_cost(title)), replace(costs, rows=rows)]


def _texts(table: Table, escapes: dict[int, str], marks: Mapping[str, str]) -> list[list[str]]:
    """The header and the rows, with characters replaced by ``escapes`` and cells marked."""
    rows = [
        [marks.get(cell.mark, "{}").format(cell.text.translate(escapes)) for cell in row]
        for row in table.rows
    ]
    return [[title.translate(escapes) for title in table.header], *rows]


def plain_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The tables for a terminal, with fewer columns and notes than the files have."""
    lines: list[str] = []
    for table in tables:
        compared = table.with_columns(lambda title: title in COMPARISONS)
        for texts in (_fitting(table), _texts(compared, {}, {})):
            if len(texts[0]) > 1:
                lines += [*aligned(wrap_names(texts)), ""]
        for note in table.notes:
            lines += wrapped(note) if not note.startswith(("Published", MARKS)) else []
        lines.append("")
    for note in notes:
        lines += wrapped(note)
    return "\n".join(lines)


def _fitting(table: Table) -> list[list[str]]:
    """As many columns as fit a terminal beside the comparisons, but at least two metrics."""
    table = replace(table, header=[table.dataset, *table.header[1:]])
    shown = table.with_columns(
        lambda title: not title.startswith(_NOT_PRINTED) and title not in COMPARISONS
    )
    metrics = [title for title in shown.header[1:] if "@" in title]
    for least_wanted in (*reversed(metrics[2:]), "params", "train s"):
        if fits(_texts(shown, {}, {})):
            break
        shown = shown.with_columns(partial(operator.ne, least_wanted))
    return _texts(shown, {}, {})


def comma_separated(tables: Sequence[Table]) -> str:
    """CSV with a line for each run and all of its test and validation metrics."""
    records = [
        {"dataset": table.dataset, "row": s.name, "kind": s.kind, "ours": s.row.ours}
        | {"trained": what_is_trained(s.row.model, run["settings"])}
        | _record(run)
        | {"tuned": json.dumps(s.row.tuned) if s.row.tuned else ""}
        for table in tables
        for s in table.standings
        for run in s.runs
    ]
    return pd.DataFrame(records, dtype=object).to_csv(index=False, lineterminator="\n")


def _record(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": run["model"],
        "seed": run["seed"],
        **run["test_result"],
        **{f"valid_{name}": value for name, value in run["best_valid_result"].items()},
        **{name: run[name] for name in ("epochs", "train_seconds", "eval_seconds", "alone")},
        "parameters": run["parameters"]["total"],
        "trainable": run["parameters"]["trainable"],
        "peak_memory_mib": run["peak_memory_mib"],
        "device": run["device"],
        "mix": run.get("with", ""),
        "mix_weight": run.get("weight", ""),
        **{f"language_{name}": value for name, value in run.get("language", {}).items()},
    }
