"""The results of runs as text tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_idiomoe.report.extra_rows import language_notes, mix_notes, unable_note, with_mixes
from recbole_idiomoe.report.formatting import (
    WIDTH,
    aligned,
    compact_number,
    protocol_line,
    recbole_title,
    selection_metric,
    table_width,
    wrap_names,
    wrapped,
)
from recbole_idiomoe.report.grid_tables import grid_lines
from recbole_idiomoe.report.result_files import Result


def table(results: Sequence[Result]) -> str:
    """The test metrics of ``results`` for a terminal, then their protocol and folders.

    Runs give one table for each data set with a row for each run. A grid gives one table for each
    data set with a row for each variant: means over the seeds, and differences from its baseline.
    A leaderboard brings its own table. If not all metrics fit into 80 columns, only the metrics at
    10 are shown; the result file has all of them.
    """
    if boards := [result["table"] for result in results if "table" in result]:
        return "\n".join(boards)
    if grids := [result for result in results if "runs" in result]:
        return "\n".join(line for grid in grids for line in grid_lines(grid))
    lines: list[str] = []
    for dataset in dict.fromkeys(result["dataset"] for result in results):
        lines += [*_dataset_table(dataset, [r for r in results if r["dataset"] == dataset]), ""]
    protocols = list(dict.fromkeys(protocol_line(result["protocol"]) for result in results))
    if len(protocols) > 1:
        lines.append("Protocols differ: the numbers above do not compare.")
    for line in protocols:
        lines += wrapped(f"Protocol: {line}")
    for result in results:
        lines += wrapped(f"Kept in {result['folder']}") if "folder" in result else []
    return "\n".join(lines)


def _dataset_table(dataset: str, runs: Sequence[Result]) -> list[str]:
    results = with_mixes(runs)
    metrics = list(dict.fromkeys(name for r in results for name in r["test_result"]))
    rows = _rows(dataset, results, metrics)
    if table_width(rows) > WIDTH:
        # If no metric is measured at 10, a table that is too wide is better than an empty one.
        metrics = [m for m in metrics if m.endswith("@10")] or metrics
        rows = _rows(dataset, results, metrics)
    lines = aligned(wrap_names(rows))
    if cold_starts := [result for result in results if "cold_start" in result]:
        lines += _unseen_table(cold_starts, metrics)
    chosen_by = selection_metric(results[0]["protocol"])
    for note in (*mix_notes(results, chosen_by), *language_notes(results)):
        lines += ["", *wrapped(note)]
    return lines


def _rows(dataset: str, results: Sequence[Result], metrics: Sequence[str]) -> list[list[str]]:
    header = [dataset, *map(recbole_title, metrics), "epochs", "train", "params"]
    rows = [
        [
            str(result["model"]),
            *_numbers(result["test_result"], metrics),
            str(result.get("epochs", "-")),
            f"{result['train_seconds']:.1f}s" if "train_seconds" in result else "-",
            compact_number(result.get("parameters", {}).get("total")),
        ]
        for result in results
    ]
    return [header, *rows]


def _unseen_table(results: Sequence[Result], metrics: Sequence[str]) -> list[str]:
    """The metrics over test targets whose items were held out for a cold start."""
    rows = [["unseen items", *map(recbole_title, metrics), "items", "targets"]]
    for result in results:
        cold_start = result["cold_start"]
        found = cold_start["unseen"]
        numbers = ["cannot"] * len(metrics) if found is None else _numbers(found, metrics)
        counts = (str(cold_start[name]) for name in ("items", "unseen_targets"))
        rows.append([str(result["model"]), *numbers, *counts])
    unable = [str(r["model"]) for r in results if r["cold_start"]["unseen"] is None]
    return ["", *aligned(rows), *(wrapped(unable_note(unable)) if unable else [])]


def _numbers(found: Result, metrics: Sequence[str]) -> list[str]:
    return ["-" if found.get(name) is None else f"{found[name]:.4f}" for name in metrics]
