"""The results of runs and of grids as text tables, for a terminal or in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from recbole_idiomoe.report import extra_rows
from recbole_idiomoe.report.formatting import (
    WIDTH,
    aligned,
    compact_number,
    markdown_table,
    metric_title,
    protocol_line,
    recbole_title,
    selection_metric,
    table_width,
    wrap_names,
    wrapped,
)
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
        return "\n".join(line for grid in grids for line in _grid_lines(grid))
    lines: list[str] = []
    for dataset, runs in _group_by("dataset", results).items():
        lines += [*_dataset_table(dataset, runs), ""]
    protocols = list(dict.fromkeys(protocol_line(result["protocol"]) for result in results))
    if len(protocols) > 1:
        lines.append("Protocols differ: the numbers above do not compare.")
    for line in protocols:
        lines += wrapped(f"Protocol: {line}")
    for result in results:
        lines += wrapped(f"Kept in {result['folder']}") if "folder" in result else []
    return "\n".join(lines)


def _dataset_table(dataset: str, runs: Sequence[Result]) -> list[str]:
    results = extra_rows.with_mixes(runs)
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
    for note in (
        *extra_rows.trained_notes(results),
        *extra_rows.mix_notes(results, chosen_by),
        *extra_rows.language_notes(results),
    ):
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
    return ["", *aligned(rows), *(wrapped(extra_rows.unable_note(unable)) if unable else [])]


def _numbers(found: Result, metrics: Sequence[str]) -> list[str]:
    return ["-" if found.get(name) is None else f"{found[name]:.4f}" for name in metrics]


def grid_markdown(grid: Result) -> str:
    """The tables and notes of a grid in Markdown, with the validation metric."""
    blocks: list[str] = []
    for tables, notes in _grid_tables(grid, validation=True):
        blocks += [*map(markdown_table, tables), *notes]
    return "\n\n".join(blocks)


def _grid_lines(grid: Result) -> Iterator[str]:
    """The tables and notes of a grid as lines for a terminal."""
    for tables, notes in _grid_tables(grid):
        for rows in tables:
            yield from (*aligned(wrap_names(rows)), "")
        for note in notes:
            yield from wrapped(note)
        yield ""


def _grid_tables(
    grid: Result, validation: bool = False
) -> Iterator[tuple[list[list[list[str]]], list[str]]]:
    """For each data set, the table over all test targets, one over unseen items, and notes."""
    every = extra_rows.with_mixes(grid["runs"], "variant")
    for dataset, runs in _group_by("dataset", every).items():
        tables = [_grid_rows(grid, dataset, runs, validation)]
        ranking = [run for run in runs if _ranks_unseen(run)]
        if unseen := [{**run, "test": run["cold_start"]["unseen"]} for run in ranking]:
            (_, *header), *rows = _grid_rows(grid, dataset, unseen)
            tables.append([["unseen items", *header], *rows])
        yield tables, _grid_notes(grid, dataset, runs)


def _ranks_unseen(run: Result) -> bool:
    return bool(run.get("cold_start", {}).get("unseen"))


def _grid_rows(
    grid: Result, dataset: str, runs: Sequence[Result], validation: bool = False
) -> list[list[str]]:
    """A header and a row for each variant: means over seeds, differences from the baseline."""
    measured, baseline = list(runs[0]["test"]), grid["baseline"]
    metrics = [name for name in ("ndcg@10", "hit@10") if name in measured] or measured[:2]
    chooses = str(grid["protocol"][dataset]["valid_metric"]).lower()
    variants = _group_by("variant", runs)
    header = [dataset]
    for metric in metrics:
        header += [metric_title(metric), "Δ"]
    header += ["params", *([f"validation {metric_title(chooses)}"] if validation else [])]
    rows = [header]
    for name, own in variants.items():
        row = [name]
        spread = not extra_rows.same_with_any_seed(own, "test")
        for metric in metrics:
            values = [run["test"][metric] for run in own]
            base = [run["test"][metric] for run in variants.get(baseline, ())]
            row += [_mean(values, spread), "-" if name == baseline else _difference(values, base)]
        row.append(compact_number(own[0]["parameters"]["total"]))
        if validation:
            # With eval_step: 0, RecBole's models have no validation result.
            found = [run["valid"][chooses] for run in own if run["valid"]]
            row.append(_mean(found, spread) if found else "-")
        rows.append(row)
    return rows


def _grid_notes(grid: Result, dataset: str, runs: Sequence[Result]) -> list[str]:
    variants = _group_by("variant", runs)
    same = [name for name, own in variants.items() if extra_rows.same_with_any_seed(own, "test")]
    seeds = extra_rows.seed_notes({name: len(own) for name, own in variants.items()}, same)
    unable = [run["variant"] for run in runs if "cold_start" in run and not _ranks_unseen(run)]
    return [
        " ".join([*seeds, f"Δ: difference from {grid['baseline']}."]),
        *([extra_rows.unable_note(unable)] if unable else []),
        *extra_rows.trained_notes(runs, "variant"),
        *extra_rows.mix_notes(runs, selection_metric(grid["protocol"][dataset]), "variant"),
        *extra_rows.language_notes(runs, "variant"),
        f"Protocol: {protocol_line(grid['protocol'][dataset])}",
    ]


def _group_by(key: str, runs: Sequence[Result]) -> dict[str, list[Result]]:
    return {
        name: [run for run in runs if run[key] == name]
        for name in dict.fromkeys(run[key] for run in runs)
    }


def _mean(values: Sequence[float], spread: bool) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if spread and len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def _difference(values: Sequence[float], baseline: Sequence[float]) -> str:
    base = statistics.mean(baseline) if baseline else 0.0
    return f"{statistics.mean(values) / base - 1:+.1%}" if base else "-"
