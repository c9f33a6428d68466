"""Results for people (a table) and for programs (JSON)."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_idiomoe.errors import IdiomoeError
from recbole_idiomoe.files import refusal, write_text

WIDTH = 80
Result = Mapping[str, Any]


def table(results: Sequence[Result]) -> str:
    """The test metrics of ``results``, one row a run, grouped by data set, and the protocol.

    The first data set that was run comes first, and so with its models. Where not
    all metrics fit into 80 columns, those at 10 are shown; the result file has all.
    """
    lines: list[str] = []
    for dataset in dict.fromkeys(result["dataset"] for result in results):
        lines += [*_dataset_table(dataset, [r for r in results if r["dataset"] == dataset]), ""]
    protocols = list(dict.fromkeys(_protocol_line(result["protocol"]) for result in results))
    if len(protocols) > 1:
        lines.append("Protocols differ: the numbers above do not compare.")
    for line in protocols:
        lines += textwrap.wrap(f"Protocol: {line}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def check_writable(path: str | Path) -> None:
    """Find out before hours of training whether a result can be written to ``path``.

    Raises:
        IdiomoeError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise IdiomoeError(f"result_file={path} is a folder; name a file in it.")
    if reason := refusal(path.parent):
        raise IdiomoeError(f"result_file={path} cannot be written ({reason}); name another.")
    if path.exists() and not os.access(path, os.W_OK):
        raise IdiomoeError(f"result_file={path} is there and write-protected; name another.")


def write_result(path: str | Path, results: Sequence[Result]) -> None:
    """Write ``results`` as JSON, whole or not at all: an object for one run, else a list.

    Raises:
        IdiomoeError: the file cannot be written.
    """
    content = results[0] if len(results) == 1 else list(results)
    try:
        write_text(Path(path), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise IdiomoeError(f"Cannot write {path}: {error.strerror}.") from error


def _dataset_table(dataset: str, results: Sequence[Result]) -> list[str]:
    metrics = list(dict.fromkeys(name for r in results for name in r["test_result"]))
    rows = _rows(dataset, results, metrics)
    if _width(rows) > WIDTH:
        # All of them again if none is measured at 10; then too wide beats empty.
        metrics = [m for m in metrics if m.endswith("@10")] or metrics
        rows = _rows(dataset, results, metrics)
    cold_starts = [result for result in results if "cold_start" in result]
    return [*_aligned(rows), *(_unseen_table(cold_starts, metrics) if cold_starts else [])]


def _unseen_table(results: Sequence[Result], metrics: Sequence[str]) -> list[str]:
    """The metrics of test targets that were held out for a cold start."""
    rows = [["unseen items", *map(_metric_title, metrics), "items", "targets"]]
    unable = []
    for result in results:
        cold_start = result["cold_start"]
        found = cold_start["unseen"]
        if found is None:
            unable.append(str(result["model"]))
        rows.append(
            [
                str(result["model"]),
                *("cannot" if found is None else _number(found.get(name)) for name in metrics),
                str(cold_start["items"]),
                str(cold_start["unseen_targets"]),
            ]
        )
    names = ", ".join(dict.fromkeys(unable))
    said = f"Unseen items are no candidates of a model that cannot rank them: {names}."
    return ["", *_aligned(rows), *(textwrap.wrap(said, WIDTH) if unable else [])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines: the first column to the left, the others to the right, a rule below."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _rows(dataset: str, results: Sequence[Result], metrics: Sequence[str]) -> list[list[str]]:
    header = [dataset, *(_metric_title(name) for name in metrics), "epochs", "train", "params"]
    rows = [
        [
            str(result["model"]),
            *(_number(result["test_result"].get(name)) for name in metrics),
            str(result.get("epochs", "-")),
            _seconds(result.get("train_seconds")),
            _count(result.get("parameters", {}).get("total")),
        ]
        for result in results
    ]
    return [header, *rows]


def _width(rows: Sequence[Sequence[str]]) -> int:
    columns = list(zip(*rows, strict=True))
    return sum(max(map(len, column)) for column in columns) + 2 * (len(columns) - 1)


def _metric_title(name: str) -> str:
    metric, at, cutoff = name.partition("@")
    known = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "auc": "AUC", "gauc": "GAUC"}
    return known.get(metric, metric.capitalize()) + at + cutoff


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}s"


def _count(value: int | None) -> str:
    if value is None:
        return "-"
    return next((f"{value / n:.1f}{unit}" for n, unit in _UNITS if value >= n), str(value))


_UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))


def _protocol_line(protocol: Mapping[str, Any]) -> str:
    """What the numbers depend on; entries that are not set are left out."""
    parts = []
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k}={v}" for k, v in value.items() if v is not None)
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        if value not in (None, ""):
            parts.append(f"{name.replace('_', ' ')} {value}")
    return "; ".join(parts)
