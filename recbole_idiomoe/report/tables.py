"""Results for people (a table) and for programs (JSON).

``python -m recbole_idiomoe.report FILE.json ...`` prints result files again, in Markdown.
"""

from __future__ import annotations

import json
import os
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_idiomoe.base.command_line import Parser, run_program
from recbole_idiomoe.base.errors import IdiomoeError, short_reason
from recbole_idiomoe.base.files import unwritable_reason, write_text
from recbole_idiomoe.report.extra_rows import language_notes, mix_notes, with_mixes

WIDTH = 80
_NAME = 19  # the least that a row's name is folded to
Result = Mapping[str, Any]


def table(results: Sequence[Result]) -> str:
    """The test metrics of ``results``, one row a run, by data set, the protocol and the folders.

    The first data set that was run comes first, and so with its models. Where not
    all metrics fit into 80 columns, those at 10 are shown; the result file has all.
    The result of a grid is a table a data set, one row a variant: means over the seeds, and
    differences from its baseline; that of a leaderboard has its table with it.
    """
    if boards := [result["table"] for result in results if "table" in result]:
        return "\n".join(boards)
    if grids := [result for result in results if "runs" in result]:
        return "\n".join(line for grid in grids for line in _grid_lines(grid))
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


def markdown(grid: Result) -> str:
    """The tables of a grid, with the validation metric that chose the epochs, in Markdown."""
    blocks = []
    for dataset, runs in _by("dataset", with_mixes(grid["runs"], "variant")).items():
        for header, *rows in _grid_tables(grid, dataset, runs, validation=True):
            lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
            blocks += ["\n".join(f"| {' | '.join(cells)} |" for cells in lines)]
        blocks += _grid_notes(grid, dataset, runs)
    return "\n\n".join(blocks)


def joined(grids: Sequence[Result]) -> dict[str, Any]:
    """One grid of several, whose rows may have been run in different places.

    The baseline is the first one's.

    Raises:
        IdiomoeError: two have runs of the same row on the same data, or another protocol.
    """
    protocols: dict[str, Any] = {}
    places: set[tuple[str, str]] = set()
    for grid in grids:
        for dataset, found in grid["protocol"].items():
            if protocols.setdefault(dataset, found) != found:
                raise IdiomoeError(
                    f"the protocols on {dataset} differ: the numbers do not compare."
                )
        ran = {(run["dataset"], run["variant"]) for run in grid["runs"]}
        if twice := places & ran:
            raise IdiomoeError("two files have a row {1!r} on {0}.".format(*min(twice)))
        places |= ran
    return {
        "baseline": grids[0]["baseline"],
        "protocol": protocols,
        "runs": [run for grid in grids for run in grid["runs"]],
    }


def check_writable(path: str | Path) -> None:
    """Find out before hours of training whether a result can be written to ``path``.

    Raises:
        IdiomoeError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise IdiomoeError(f"result_file={path} is a folder; name a file in it.")
    if reason := unwritable_reason(path.parent):
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


def _dataset_table(dataset: str, runs: Sequence[Result]) -> list[str]:
    results = with_mixes(runs)
    metrics = list(dict.fromkeys(name for r in results for name in r["test_result"]))
    rows = _rows(dataset, results, metrics)
    if _width(rows) > WIDTH:
        # All of them again if none is measured at 10; then too wide beats empty.
        metrics = [m for m in metrics if m.endswith("@10")] or metrics
        rows = _rows(dataset, results, metrics)
    cold_starts = [result for result in results if "cold_start" in result]
    notes = [*mix_notes(results, _chooses(results[0]["protocol"])), *language_notes(results)]
    return [
        *aligned(folded(rows)),
        *(_unseen_table(cold_starts, metrics) if cold_starts else []),
        *(line for note in notes for line in ["", *wrapped(note)]),
    ]


def _chooses(protocol: Mapping[str, Any]) -> str:
    """The title of the metric that chooses on validation."""
    return metric_title(str(protocol.get("valid_metric")).lower())


def _unseen_table(results: Sequence[Result], metrics: Sequence[str]) -> list[str]:
    """The metrics of test targets that were held out for a cold start."""
    rows = [["unseen items", *map(_recbole_title, metrics), "items", "targets"]]
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
    return ["", *aligned(rows), *(wrapped(_cannot_rank(unable)) if unable else [])]


def _cannot_rank(names: Sequence[str]) -> str:
    listed = ", ".join(dict.fromkeys(names))
    return f"Unseen items are no candidates of a model that cannot rank them: {listed}."


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines: the first column to the left, the others to the right, a rule below.

    Where a terminal has no room, the words of the first row stand below each other.
    """
    titles = [[title] for title in rows[0]]
    if _width(rows) > WIDTH:
        titles = [title.split() for title in rows[0]]
    high = max(map(len, titles))
    head = list(zip(*([""] * (high - len(words)) + words for words in titles), strict=True))
    rows = [*head, *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [*lines[:high], "-" * max(map(len, lines)), *lines[high:]]


def _grid_lines(grid: Result) -> Iterator[str]:
    for dataset, runs in _by("dataset", with_mixes(grid["runs"], "variant")).items():
        for rows in _grid_tables(grid, dataset, runs):
            yield from (*aligned(folded(rows)), "")
        for note in _grid_notes(grid, dataset, runs):
            yield from wrapped(note)
        yield ""


def _grid_tables(
    grid: Result, dataset: str, runs: Sequence[Result], validation: bool = False
) -> Iterator[list[list[str]]]:
    """The table of all test targets and, of a cold start, another of the unseen ones."""
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
    """Header and rows: means over seeds, each test metric's difference from the baseline in %."""
    measured = list(runs[0]["test"])
    metrics = [name for name in ("ndcg@10", "hit@10") if name in measured] or measured[:2]
    chooses = str(grid["protocol"][dataset]["valid_metric"]).lower()
    variants = _by("variant", runs)
    header = [dataset]
    for metric in metrics:
        header += [metric_title(metric), "Δ"]
    header += ["params"]
    header += [f"validation {metric_title(chooses)}"] if validation else []
    rows = []
    for name, own in variants.items():
        row = [name]
        spread = not same_with_any_seed(own, "test")
        for metric in metrics:
            values = [run["test"][metric] for run in own]
            base = [run["test"][metric] for run in variants.get(grid["baseline"], ())]
            difference = "-" if name == grid["baseline"] else _difference(values, base)
            row += [_mean(values, spread), difference]
        row += [count(own[0]["parameters"]["total"])]
        if validation:
            # RecBole's models have none with eval_step: 0.
            found = [run["valid"][chooses] for run in own if run["valid"]]
            row += [_mean(found, spread) if found else "-"]
        rows.append(row)
    return [header, *rows]


def _grid_notes(grid: Result, dataset: str, runs: Sequence[Result]) -> list[str]:
    variants = _by("variant", runs)
    same = [name for name, own in variants.items() if same_with_any_seed(own, "test")]
    seeds = seed_notes({name: len(own) for name, own in variants.items()}, same)
    held_out = [run for run in runs if "cold_start" in run]
    unable = [str(run["variant"]) for run in held_out if not _ranks_unseen(run)]
    return [
        " ".join([*seeds, f"Δ: difference from {grid['baseline']}."]),
        *([_cannot_rank(unable)] if unable else []),
        *mix_notes(runs, _chooses(grid["protocol"][dataset]), "variant"),
        *language_notes(runs, "variant"),
        f"Protocol: {protocol_line(grid['protocol'][dataset])}",
    ]


def same_with_any_seed(runs: Sequence[Result], tested: str) -> bool:
    """Whether a model draws nothing by chance: it has no parameters, and its runs are alike.

    Args:
        runs: of one row, at least one; a cold start's data are drawn by the seed, whatever model.
        tested: the entry with their test metrics.
    """
    first = runs[0]
    return not first["parameters"]["total"] and all(run[tested] == first[tested] for run in runs)


def seed_notes(seeds: Mapping[str, int], same: Sequence[str]) -> list[str]:
    """How many seeds means are of, and which rows have no spread.

    Args:
        seeds: each row's number of runs, by name.
        same: the rows that are :func:`same_with_any_seed`.
    """
    counts = sorted({number for name, number in seeds.items() if name not in same})
    over = " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:]))))
    means = {"": [], "1": ["One seed."]}.get(
        over, [f"Mean ± standard deviation over {over} seeds."]
    )
    without = f"The same with any seed, as nothing is drawn by chance: {', '.join(same)}."
    return [*means, *([without] if same and counts != [1] else [])]


def fits(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a terminal holds the rows, once their names are folded."""
    return _width([["", *row[1:]] for row in rows]) + _NAME <= WIDTH


def folded(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """``rows``, their names in several lines where a table would be too wide."""
    room = max(_NAME, WIDTH - _width([["", *row[1:]] for row in rows]))
    folded = []
    for name, *cells in rows:
        first, *rest = textwrap.wrap(name, room, subsequent_indent="  ")
        folded += [[first, *cells], *([line, *[""] * len(cells)] for line in rest)]
    return folded


def _by(key: str, runs: Sequence[Result]) -> dict[str, list[Result]]:
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


def metric_title(metric: str) -> str:
    """``metric`` as the paper's tables have it: HR@10 for ``hit@10``."""
    return _recbole_title(metric).replace("Hit", "HR")


def _rows(dataset: str, results: Sequence[Result], metrics: Sequence[str]) -> list[list[str]]:
    header = [dataset, *(_recbole_title(name) for name in metrics), "epochs", "train", "params"]
    rows = [
        [
            str(result["model"]),
            *(_number(result["test_result"].get(name)) for name in metrics),
            str(result.get("epochs", "-")),
            _seconds(result.get("train_seconds")),
            count(result.get("parameters", {}).get("total")),
        ]
        for result in results
    ]
    return [header, *rows]


def _width(rows: Sequence[Sequence[str]]) -> int:
    columns = list(zip(*rows, strict=True))
    return sum(max(map(len, column)) for column in columns) + 2 * (len(columns) - 1)


def _recbole_title(name: str) -> str:
    metric, at, cutoff = name.partition("@")
    known = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "auc": "AUC", "gauc": "GAUC"}
    return known.get(metric, metric.capitalize()) + at + cutoff


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}s"


def count(value: int | None) -> str:
    """A large number in short: 13.2M."""
    if value is None:
        return "-"
    return next((f"{value / n:.1f}{unit}" for n, unit in _UNITS if value >= n), str(value))


_UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))


def protocol_line(protocol: Mapping[str, Any]) -> str:
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


def wrapped(line: str) -> list[str]:
    """``line`` in lines that a terminal holds; a path stays whole, to be copied."""
    return textwrap.wrap(
        line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m recbole_idiomoe.report FILE.json ...``: the table of grids, in Markdown."""
    return run_program(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m recbole_idiomoe.report",
        description="Print tables of variants or seeds in Markdown, of several files as one.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a --result_file")
    print(markdown(joined([_read_grid(path) for path in parser.parse_args(arguments).files])))


def _read_grid(path: Path) -> dict[str, Any]:
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IdiomoeError(
            f"{path} cannot be read as a result file ({short_reason(error)})."
        ) from error
    if not isinstance(grid, dict) or not {"baseline", "protocol", "runs"} <= grid.keys():
        raise IdiomoeError(
            f"{path} is not the result file of variants or seeds; name one of those."
        )
    return grid
