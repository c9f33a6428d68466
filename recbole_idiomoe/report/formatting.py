"""Titles, numbers and tables as text that fits a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80
NAME_WIDTH = 19  # the fewest columns that a row's name is wrapped to
_UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))


_TITLES = {
    name.lower(): name
    for name in (
        *("NDCG", "MRR", "MAP", "AUC", "GAUC", "MAE", "RMSE", "LogLoss", "ItemCoverage"),
        *("AveragePopularity", "ShannonEntropy", "GiniIndex", "TailPercentage"),
    )
}
"""RecBole's names of metrics, where they are more than a capitalised word."""


def metric_title(metric: str) -> str:
    """The name of ``metric`` in the paper's tables: ``HR@10`` for ``hit@10``."""
    return recbole_title(metric).replace("Hit", "HR")


def recbole_title(name: str) -> str:
    """The name of a metric as RecBole writes it: ``Hit@10`` for ``hit@10``."""
    metric, at, cutoff = name.partition("@")
    return _TITLES.get(metric, metric.capitalize()) + at + cutoff


def selection_metric(protocol: Mapping[str, Any]) -> str:
    """The title of the validation metric that chooses the best epoch."""
    return metric_title(str(protocol.get("valid_metric")).lower())


def compact_number(value: int | None) -> str:
    """A count with a unit, as ``13.2M``; ``-`` for None."""
    if value is None:
        return "-"
    return next((f"{value / n:.1f}{unit}" for n, unit in _UNITS if value >= n), str(value))


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """The entries of a protocol that are set, on one line."""
    parts = []
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k}={v}" for k, v in value.items() if v is not None)
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        if value not in (None, ""):
            parts.append(f"{name.replace('_', ' ')} {value}")
    return "; ".join(parts)


def wrapped(line: str) -> list[str]:
    """``line`` as lines of at most :data:`WIDTH` columns; paths are not broken."""
    return textwrap.wrap(
        line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, from its header and rows: names to the left, numbers to the right."""
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: names to the left, numbers to the right, a rule below the header.

    If the table is wider than :data:`WIDTH`, the header puts each word on its own line.
    """
    is_wide = table_width(rows) > WIDTH
    titles = [title.split() if is_wide else [title] for title in rows[0]]
    high = max(map(len, titles))
    head = list(zip(*([""] * (high - len(words)) + words for words in titles), strict=True))
    rows = [*head, *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return [*lines[:high], "-" * max(map(len, lines)), *lines[high:]]


def fits(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the rows fit into :data:`WIDTH` columns once :func:`wrap_names` has wrapped them."""
    return table_width([["", *row[1:]] for row in rows]) + NAME_WIDTH <= WIDTH


def wrap_names(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """``rows`` with long names wrapped over several rows where the table would be too wide."""
    room = max(NAME_WIDTH, WIDTH - table_width([["", *row[1:]] for row in rows]))
    lines: list[list[str]] = []
    for name, *cells in rows:
        first, *rest = textwrap.wrap(name, room, subsequent_indent="  ")
        lines += [[first, *cells], *([line, *[""] * len(cells)] for line in rest)]
    return lines


def table_width(rows: Sequence[Sequence[str]]) -> int:
    """Columns of a terminal that the rows take, with two blanks between their cells."""
    columns = list(zip(*rows, strict=True))
    return sum(max(map(len, column)) for column in columns) + 2 * (len(columns) - 1)
