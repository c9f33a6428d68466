"""The output of an analysis: JSON, a CSV file for each table, plots, and text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_idiomoe.analysis.plot_layout import plot_file
from recbole_idiomoe.analysis.plots import plots_with_rows
from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.base.files import atomic_write, unwritable_reason, write_text
from recbole_idiomoe.report.formatting import WIDTH, aligned, wrapped
from recbole_idiomoe.report.plot_style import NO_MATPLOTLIB, can_draw

FORMATS = ("png", "svg", "pdf")
PRINTED = 120  # the most rows of a table that is printed; longer ones are only in the files
WORD, SHORTEST = 26, 10  # characters that a cell shows, and the fewest in a narrow table


def out_folder(given: str, folders: Sequence[Path]) -> Path:
    """The folder for the files, checked before anything is computed.

    Raises:
        IdiomoeError: the folder cannot be written.
    """
    folder = Path(given) if given else folders[0] / "analysis"
    if folder.exists() and not folder.is_dir():
        raise IdiomoeError(f"--out={folder} is a file; name a folder.")
    if reason := unwritable_reason(folder):
        raise IdiomoeError(f"--out={folder} cannot be written ({reason}); name another.")
    return folder


def write_outputs(analysis: Analysis, folder: Path) -> list[Path]:
    """Write ``NAME.json``, ``NAME-TABLE.csv`` and the plots into ``folder``; returns their paths.

    Each file is written atomically. Without matplotlib there are no plots.
    """
    content = asdict(analysis)
    del content["long_tables"]
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False)
    files = {folder / f"{analysis.name}.json": text}
    for name, rows in (analysis.tables | analysis.long_tables).items():
        if rows:
            files[folder / f"{analysis.name}-{name}.csv"] = comma_separated(rows)
    for path, text in files.items():
        write_text(path, text)
    written = list(files)
    for plot, kind in product(plots_with_rows(analysis) if can_draw() else (), FORMATS):
        path = folder / f"{analysis.name}-{plot.name}.{kind}"
        with atomic_write(path) as temporary:
            temporary.write_bytes(plot_file(plot, analysis, kind))
        written.append(path)
    return written


def comma_separated(rows: Sequence[Row]) -> str:
    """CSV of the rows with numbers in full; nan and infinity are empty."""
    return pd.DataFrame(_finite(rows), dtype=object).to_csv(index=False, lineterminator="\n")


def plain_text(analysis: Analysis, written: Sequence[Path]) -> str:
    """The tables and notes for a terminal, and the folder of the files."""
    lines = [analysis.title, ""]
    for rows in analysis.tables.values():
        lines += _fitted(rows) if 0 < len(rows) <= PRINTED else []
    written_to = f"{len(written)} files are in {written[0].parent}."
    for note in (*analysis.notes, *([] if can_draw() else [NO_MATPLOTLIB]), written_to):
        lines += wrapped(note)
    return "\n".join(lines)


def _fitted(rows: Sequence[Row]) -> list[str]:
    """The rows as a table, or as several if one is too wide for a terminal.

    To save width, columns with a single value move above the table, as few as needed; then the
    first columns do, with a table for each of their values; at last, words are cut shorter.
    """
    names = list(rows[0])
    values = [tuple(row.values()) for row in rows]
    alike = [n for n in range(len(names)) if len({row[:n] for row in values}) < len(rows)]
    most = max([1, *alike])  # a run's name may head a single row
    same = [name for name in names if len(rows) > 1 and len({row[name] for row in rows}) == 1]
    layouts = [same[:n] for n in range(len(same) + 1)]
    layouts += [names[:n] + same for n in range(1, most + 1)]
    titles, *whole = as_text(rows)
    for longest, above in product(range(WORD, SHORTEST - 1, -1), layouts):
        below = [n for n, name in enumerate(names) if name not in above]
        tables: dict[str, list[list[str]]] = {}
        for row, words, cells in zip(rows, whole, as_text(rows, longest)[1:], strict=True):
            common = ", ".join(
                word if isinstance(row[name], str) else f"{title} {word}"
                for name, title, word in zip(names, titles, words, strict=True)
                if name in above
            )
            table = tables.setdefault(common, [[titles[n] for n in below]])
            table.append([cells[n] for n in below])
        lines: list[str] = []
        for common, table in tables.items():
            lines += [*filter(None, [common]), *aligned(table), ""]
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def as_text(rows: Sequence[Row], longest: int = WORD) -> list[list[str]]:
    """A header and the rows as text, with words cut to ``longest`` characters."""
    columns = [[_title(name), *_cells((row[name] for row in rows), longest)] for name in rows[0]]
    return [list(row) for row in zip(*columns, strict=True)]


def _title(name: str) -> str:
    """A column's title: ``tokens per s`` for ``tokens_s``."""
    whole = name.removesuffix("_s")
    return whole.replace("_", " ") + (" per s" if whole != name else "")


def _cells(column: Iterable[str | int | float | None], longest: int = WORD) -> list[str]:
    """The cells of a column: numbers with the same decimals, words cut at ``longest``."""
    values = [None if isinstance(v, float) and not math.isfinite(v) else v for v in column]
    largest = max((abs(v) for v in values if isinstance(v, float)), default=0.0)
    decimals = 4 if largest < 1 else 3 if largest < 10 else 1 if largest < 10_000 else 0
    return ["-" if v is None else _cell(v, decimals, longest) for v in values]


def _cell(value: str | int | float, decimals: int, longest: int) -> str:
    if isinstance(value, float):
        return f"{value:,.{decimals}f}" if value else "0"  # only an exact zero has no decimals
    text = str(value) if str(value).isprintable() else repr(value)  # a token may be a line break
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _finite(value: Any) -> Any:
    """``value`` with None for nan and infinity, which JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
