"""Tables in Markdown, LaTeX and comma-separated values, and the notes that all of them share."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_idiomoe.leaderboard.tables import Table
from recbole_idiomoe.report import aligned, protocol_line, wrapped


def protocol_notes(protocols: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The protocol once, and what each data set has of its own."""
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
    """The versions that the runs were made with."""
    found: dict[str, list[str]] = {}
    for run in (run for table in tables for s in table.standings for run in s.runs):
        for name, version in run["versions"].items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    listed = (f"{name} {' and '.join(versions)}" for name, versions in found.items())
    return f"Versions: {', '.join(listed)}."


def markdown(table: Table) -> str:
    """The table and its notes."""
    marked = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    lines = [
        [_md(title) for title in table.header],
        ["---", *["---:"] * (len(table.header) - 1)],
        *([marked[cell.mark].format(_md(cell.text)) for cell in row] for row in table.rows),
    ]
    shown = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = "\n".join(f"- {_md(note)}" for note in table.notes)
    return f"## {table.dataset}\n\n{shown}\n\n{notes}\n"


def plain_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The tables for a terminal, without what is in the other files alone."""
    lines: list[str] = []
    for table in tables:
        kept = [n for n, title in enumerate(table.header) if not title.startswith(_LEFT_OUT)]
        shown = [[row[n].text for n in kept] for row in table.rows]
        header = [table.dataset, *(table.header[n] for n in kept[1:])]
        lines += [*aligned([header, *shown]), ""]
        for note in table.notes:
            if not note.startswith("Published"):
                lines += wrapped(note)
        lines.append("")
    for note in notes:
        lines += wrapped(note)
    return "\n".join(lines)


_LEFT_OUT = ("kind", "published", "eval s", "epochs", "MiB", "seeds", "device")


def latex(table: Table) -> str:
    """The table as a float that needs the package booktabs; its notes are the caption."""
    marked = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    lines = [
        " & ".join(map(_tex, table.header)) + r" \\",
        r"\midrule",
        *(
            " & ".join(marked[cell.mark].format(_tex(cell.text)) for cell in row) + r" \\"
            for row in table.rows
        ),
    ]
    notes = " ".join(_tex(note) for note in table.notes)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_tex(table.dataset)}. {notes}}}",
            r"\end{table}",
            "",
        ]
    )


def comma_separated(tables: Sequence[Table]) -> str:
    """A line a run, with every metric of test and validation."""
    records = [
        {"dataset": table.dataset, "row": s.name, "ours": s.row.ours} | _record(run)
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
        "[": "{[}",  # behind a line's end it would be an argument
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
        "\n": " ",
    }
)


def _tex(text: str) -> str:
    return text.translate(_TEX)
