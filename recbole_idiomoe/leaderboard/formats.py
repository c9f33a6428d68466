"""A leaderboard's tables in Markdown, LaTeX, CSV and plain text, and their shared notes."""

from __future__ import annotations

import csv
import io
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from recbole_idiomoe.leaderboard.tables import DEVICE, MARKS, Table, is_cost
from recbole_idiomoe.report.formatting import aligned, fits, protocol_line, wrap_names, wrapped


def protocol_notes(protocols: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What all data sets share of the protocol, then what differs by data set."""
    first = next(iter(protocols.values()), {})
    shared = {
        name: value
        for name, value in first.items()
        if all(other.get(name) == value for other in protocols.values())
    }
    own = {
        dataset: {name: value for name, value in found.items() if name not in shared}
        for dataset, found in protocols.items()
    }
    return [
        f"Protocol: {protocol_line(shared)}",
        *(f"{dataset}: {protocol_line(found)}" for dataset, found in own.items() if found),
    ]


def version_note(tables: Sequence[Table]) -> str:
    """The versions of Python and of the packages that the runs used."""
    found: dict[str, list[str]] = {}
    for run in (run for table in tables for s in table.standings for run in s.runs):
        for name, version in run["versions"].items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    listed = (f"{name} {' and '.join(versions)}" for name, versions in found.items())
    return f"Versions: {', '.join(listed)}."


def markdown(table: Table) -> str:
    """A section with the table of metrics, the table of costs, and the notes."""
    notes = "\n".join(f"- {_md(note)}" for note in table.notes)
    parts = "\n\n".join(_markdown_table(part) for part in _in_two(table))
    return f"## {table.dataset}\n\n{parts}\n\n{notes}\n"


def _markdown_table(table: Table) -> str:
    marked = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    lines = [
        [_md(title) for title in table.header],
        ["---", *["---:"] * (len(table.header) - 1)],
        *([marked[cell.mark].format(_md(cell.text)) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _in_two(table: Table) -> list[Table]:
    """The columns of metrics, and the columns of costs, these without mixes."""
    costs = table.with_columns(is_cost)
    of_rows = zip(costs.rows, costs.standings, strict=True)
    trained = [row for row, standing in of_rows if not standing.mixed]
    return [table.with_columns(lambda title: not is_cost(title)), replace(costs, rows=trained)]


def plain_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The tables for a terminal, with fewer columns and notes than the files have."""
    lines: list[str] = []
    for table in tables:
        lines += [*aligned(wrap_names(_fitting(table))), ""]
        for note in table.notes:
            if not note.startswith(("Published", MARKS)):
                lines += wrapped(note)
        lines.append("")
    for note in notes:
        lines += wrapped(note)
    return "\n".join(lines)


def _fitting(table: Table) -> list[list[str]]:
    """As many columns as fit a terminal, but at least two metrics."""
    shown = table.with_columns(lambda title: not title.startswith(_LEFT_OUT))
    metrics = [title for title in shown.header if "@" in title]
    for least_wanted in (*reversed(metrics[2:]), "params", "train s"):
        if fits(_texts(shown)):
            break
        shown = shown.with_columns(partial(operator.ne, least_wanted))
    return _texts(shown)


def _texts(table: Table) -> list[list[str]]:
    header = [table.dataset, *table.header[1:]]
    return [header, *([cell.text for cell in row] for row in table.rows)]


_LEFT_OUT = ("kind", "published", "eval s", "epochs", "MiB", "seeds", "settings", DEVICE)


def latex(table: Table) -> str:
    """A LaTeX float (package booktabs) of both tables, with the notes as its caption."""
    notes = " ".join(_tex(note) for note in table.notes)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            "\n\n\\medskip\n".join(_tabular(part) for part in _in_two(table)),
            rf"\caption{{{_tex(table.dataset)}. {notes}}}",
            r"\end{table}",
            "",
        ]
    )


def _tabular(table: Table) -> str:
    marked = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    lines = [
        " & ".join(map(_tex, table.header)) + r" \\",
        r"\midrule",
        *(
            " & ".join(marked[cell.mark].format(_tex(cell.text)) for cell in row) + r" \\"
            for row in table.rows
        ),
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


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
    fields = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": run["model"],
        "seed": run["seed"],
        **run["test_result"],
        **{f"valid_{name}": value for name, value in run["best_valid_result"].items()},
        "epochs": run["epochs"],
        "train_seconds": run["train_seconds"],
        "eval_seconds": run["eval_seconds"],
        "alone": run["alone"],
        "parameters": run["parameters"]["total"],
        "trainable": run["parameters"]["trainable"],
        "peak_memory_mib": run["peak_memory_mib"],
        "device": run["device"],
        "mix": run.get("with", ""),
        "mix_weight": run.get("weight", ""),
        **{f"language_{name}": value for name, value in run.get("language", {}).items()},
    }


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "[": "{[}",  # after a line's end it would be an argument
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
        "\n": " ",
    }
)


def _tex(text: str) -> str:
    return text.translate(_TEX)
