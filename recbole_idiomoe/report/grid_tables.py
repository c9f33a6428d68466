"""The results of a grid as tables: a row for each variant, averaged over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from recbole_idiomoe.report.extra_rows import language_notes, mix_notes, unable_note, with_mixes
from recbole_idiomoe.report.formatting import (
    aligned,
    compact_number,
    markdown_table,
    metric_title,
    protocol_line,
    selection_metric,
    wrap_names,
    wrapped,
)
from recbole_idiomoe.report.result_files import Result


def markdown(grid: Result) -> str:
    """The tables and notes of a grid in Markdown, with the validation metric."""
    blocks: list[str] = []
    for dataset, runs in _group_by("dataset", with_mixes(grid["runs"], "variant")).items():
        blocks += map(markdown_table, _grid_tables(grid, dataset, runs, validation=True))
        blocks += _grid_notes(grid, dataset, runs)
    return "\n\n".join(blocks)


def grid_lines(grid: Result) -> Iterator[str]:
    """The tables and notes of a grid as lines for a terminal."""
    for dataset, runs in _group_by("dataset", with_mixes(grid["runs"], "variant")).items():
        for rows in _grid_tables(grid, dataset, runs):
            yield from (*aligned(wrap_names(rows)), "")
        for note in _grid_notes(grid, dataset, runs):
            yield from wrapped(note)
        yield ""


def _grid_tables(
    grid: Result, dataset: str, runs: Sequence[Result], validation: bool = False
) -> Iterator[list[list[str]]]:
    """The table over all test targets and, for a cold start, one over the unseen items."""
    yield _grid_rows(grid, dataset, runs, validation)
    unseen = [{**run, "test": run["cold_start"]["unseen"]} for run in runs if _ranks_unseen(run)]
    if unseen:
        (_, *header), *rows = _grid_rows(grid, dataset, unseen)
        yield [["unseen items", *header], *rows]


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
        spread = not same_with_any_seed(own, "test")
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
    same = [name for name, own in variants.items() if same_with_any_seed(own, "test")]
    seeds = seed_notes({name: len(own) for name, own in variants.items()}, same)
    unable = [run["variant"] for run in runs if "cold_start" in run and not _ranks_unseen(run)]
    return [
        " ".join([*seeds, f"Δ: difference from {grid['baseline']}."]),
        *([unable_note(unable)] if unable else []),
        *mix_notes(runs, selection_metric(grid["protocol"][dataset]), "variant"),
        *language_notes(runs, "variant"),
        f"Protocol: {protocol_line(grid['protocol'][dataset])}",
    ]


def same_with_any_seed(runs: Sequence[Result], tested: str) -> bool:
    """Whether a model is deterministic: it has no parameters, and its runs agree.

    With a cold start the seed also draws the data, so that runs of the same model may differ.

    Args:
        runs: the runs of one row, at least one.
        tested: the key of a run's test metrics.
    """
    first = runs[0]
    return not first["parameters"]["total"] and all(run[tested] == first[tested] for run in runs)


def seed_notes(seeds: Mapping[str, int], same: Sequence[str]) -> list[str]:
    """Notes on the number of seeds in a table, and on the rows without a spread.

    Args:
        seeds: the number of runs of each row, by name.
        same: names of the rows for which :func:`same_with_any_seed` holds.
    """
    counts = sorted({number for name, number in seeds.items() if name not in same})
    over = " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:]))))
    means = {"": [], "1": ["One seed."]}.get(
        over, [f"Mean ± standard deviation over {over} seeds."]
    )
    without = f"The same with any seed, as nothing is drawn by chance: {', '.join(same)}."
    return [*means, *([without] if same and counts != [1] else [])]


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
