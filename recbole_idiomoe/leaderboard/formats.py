"""A leaderboard's tables in Markdown, LaTeX, CSV and plain text, and their shared notes."""

from __future__ import annotations

import json
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from recbole_idiomoe.leaderboard.tables import DEVICE, MARKS, Table, is_cost
from recbole_idiomoe.report.formatting import (
    aligned,
    fits,
    markdown_table,
    protocol_line,
    wrap_names,
    wrapped,
)

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
        "\n": " ",
    }
)
_NOT_PRINTED = ("kind", "published", "eval s", "epochs", "MiB", "seeds", "settings", DEVICE)


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
        lines += [*aligned(wrap_names(_fitting(table))), ""]
        for note in table.notes:
            lines += wrapped(note) if not note.startswith(("Published", MARKS)) else []
        lines.append("")
    for note in notes:
        lines += wrapped(note)
    return "\n".join(lines)


def _fitting(table: Table) -> list[list[str]]:
    """As many columns as fit a terminal, but at least two metrics."""
    table = replace(table, header=[table.dataset, *table.header[1:]])
    shown = table.with_columns(lambda title: not title.startswith(_NOT_PRINTED))
    metrics = [title for title in shown.header[1:] if "@" in title]
    for least_wanted in (*reversed(metrics[2:]), "params", "train s"):
        if fits(_texts(shown, {}, {})):
            break
        shown = shown.with_columns(partial(operator.ne, least_wanted))
    return _texts(shown, {}, {})


def comma_separated(tables: Sequence[Table]) -> str:
    """CSV with a line for each run and all of its test and validation metrics."""
    records = [
        {"dataset": table.dataset, "row": s.name, "ours": s.row.ours}
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
