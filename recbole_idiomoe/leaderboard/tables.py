"""A leaderboard's tables, one for each data set, independent of the output format."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole_idiomoe.leaderboard.published import published, sources
from recbole_idiomoe.leaderboard.standings import (
    PERMUTATIONS,
    TEST_SEED,
    Comparison,
    Standing,
    best_baseline,
    compare,
    marks,
)
from recbole_idiomoe.report.extra_rows import NLL_CHANGE, language_notes, mix_notes, nll_change
from recbole_idiomoe.report.formatting import compact_number, metric_title
from recbole_idiomoe.report.grid_tables import seed_notes


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | str = ""
    """The value that its column is sorted by."""
    mark: str = ""
    """``best``, ``second`` or empty."""


@dataclass(frozen=True)
class Table:
    """The table and notes of one data set."""

    dataset: str
    metric: str
    """The metric that orders and compares rows, and that chose the epochs."""
    header: list[str]
    rows: list[list[Cell]]
    notes: list[str]
    standings: list[Standing]
    comparisons: dict[str, Comparison]
    """Each row's comparison with the best baseline, by name."""

    def with_columns(self, keep: Callable[[str], bool]) -> Table:
        """The table with the first column and the columns whose title ``keep`` accepts."""
        kept = [n for n, title in enumerate(self.header) if n == 0 or keep(title)]
        rows = [[row[n] for n in kept] for row in self.rows]
        return replace(self, header=[self.header[n] for n in kept], rows=rows)


NOT_ALONE = "*"
MARKS = "The best is bold, the second best underlined."
DEVICE = "device"


def table_of(dataset: str, metric: str, standings: Sequence[Standing]) -> Table:
    """The table of the rows in ``standings``, which are ordered best first."""
    ran = [standing for standing in standings if standing.runs]
    baseline = best_baseline(standings)
    comparisons = {}
    for standing in ran:
        against = best_baseline(standings, standing.mixed)
        if against is not None and standing is not against:
            comparisons[standing.name] = compare(standing, against, metric)
    columns: dict[str, Callable[[Standing], Cell]] = {"row": _name}
    for name in _shown(metric, ran):
        columns[metric_title(name)] = _metric_column(name, ran)
    if baseline is not None:
        columns["Δ"] = lambda standing: _difference(comparisons.get(standing.name))
        columns["p"] = lambda standing: _p(comparisons.get(standing.name))
    # Nobody has published a variant or a mix, whose name differs from its model's.
    cited = {s.name: published(s.name, dataset, metric) for s in standings if s.name == s.row.model}
    if any(cited.values()):
        columns[f"published {metric_title(metric)}"] = lambda standing: _cited(standing, cited)
    if any("language" in run for s in ran for run in s.runs):
        columns[NLL_CHANGE] = _language
    if any(standing.row.tuned for standing in standings):
        columns["settings"] = _settings
    columns |= {"kind": _kind} | _COSTS
    devices = list(dict.fromkeys(run["device"] for s in ran for run in s.runs))
    if len(devices) > 1:
        columns[DEVICE] = _device
    rows = [[column(standing) for column in columns.values()] for standing in standings]
    rows_alone = [standing for standing in standings if not standing.mixed]
    notes = [
        *_statistics_notes(metric, ran, baseline),
        *_mix_notes(metric, standings),
        *language_notes([{**run, "model": s.name} for s in ran for run in s.runs], values=False),
        *_cost_notes(ran, devices),
        *(
            f"Published, of another protocol, {name}: {sources()[name]}."
            for name in dict.fromkeys(p.source for found in cited.values() for p in found)
        ),
        *(note for row in rows_alone for note in _failure_notes(row)),
        *(_settings_note(row) for row in rows_alone if row.row.own),
        *(_tuned_note(row) for row in rows_alone if row.row.tuned),
    ]
    return Table(dataset, metric, list(columns), rows, notes, list(standings), comparisons)


def _shown(metric: str, ran: Sequence[Standing]) -> list[str]:
    """``metric``, then the other metrics at its cutoff; the CSV file has all of them."""
    cutoff = metric.partition("@")[1:]
    measured = dict.fromkeys(name for standing in ran for name in standing.metrics)
    same = [name for name in measured if name.partition("@")[1:] == cutoff]
    return [metric, *(name for name in same if name != metric)]


def _name(standing: Standing) -> Cell:
    return Cell(standing.name, standing.name.lower())


def _kind(standing: Standing) -> Cell:
    kind = "ours" if standing.row.ours else "baseline"
    return Cell(kind, kind)


def _metric_column(name: str, ran: Sequence[Standing]) -> Callable[[Standing], Cell]:
    means = [s.mean(name) if name in s.metrics else float("nan") for s in ran]
    marked = dict(zip((s.name for s in ran), marks(means), strict=True))

    def column(standing: Standing) -> Cell:
        if not standing.runs:
            return Cell("failed")
        if name not in standing.metrics:
            return Cell("-")
        mean, deviation = standing.mean(name), standing.deviation(name)
        spread = "" if deviation is None else f" ± {deviation:.4f}"
        return Cell(f"{mean:.4f}{spread}", mean, marked[standing.name])

    return column


def _difference(found: Comparison | None) -> Cell:
    if found is None or math.isnan(found.difference):
        return Cell("-")
    return Cell(f"{found.difference:+.1%}", found.difference)


def _p(found: Comparison | None) -> Cell:
    if found is None:
        return Cell("-")
    return Cell("< .001" if found.p < 0.001 else f"{found.p:.3f}".lstrip("0"), found.p)


def _cited(standing: Standing, cited: Mapping[str, Sequence[Any]]) -> Cell:
    found = cited.get(standing.name)
    if not found:
        return Cell("-")
    return Cell("; ".join(f"{p.value:.4f} ({p.source})" for p in found), found[0].value)


def _cost(name: str, shown: Callable[[Standing, float], str]) -> Callable[[Standing], Cell]:
    def column(standing: Standing) -> Cell:
        if not standing.runs:
            return Cell("-")
        value = standing.cost(name)
        return Cell(shown(standing, value), value)

    return column


def _seconds(standing: Standing, value: float) -> str:
    return f"{value:,.1f}{'' if standing.alone else NOT_ALONE}"


def _parameters(standing: Standing) -> Cell:
    if not standing.runs:
        return Cell("-")
    total = standing.runs[0]["parameters"]["total"]
    return Cell(compact_number(total), total)


def _settings(standing: Standing) -> Cell:
    kind = "tuned" if standing.row.tuned else "own" if standing.row.own else "default"
    return Cell(kind, kind)


def _language(standing: Standing) -> Cell:
    changes = [run["language"]["nll_change"] for run in standing.runs if "language" in run]
    if not changes:
        return Cell("-")
    mean = statistics.mean(changes)
    # The mean of changes that are not 0 may be 0.
    return Cell(nll_change(mean) if any(changes) else nll_change(0), mean)


def _device(standing: Standing) -> Cell:
    names = "; ".join(dict.fromkeys(run["device"] for run in standing.runs)) or "-"
    return Cell(names, names)


def is_cost(title: str) -> bool:
    """Whether the column with this title has a cost and not a metric."""
    return title in _COSTS or title == DEVICE


_COSTS: dict[str, Callable[[Standing], Cell]] = {
    "train s": _cost("train_seconds", _seconds),
    "eval s": _cost("eval_seconds", _seconds),
    "epochs": _cost("epochs", lambda _, value: f"{value:.0f}"),
    "params": _parameters,
    "MiB": _cost("peak_memory_mib", lambda _, value: f"{value:,.0f}"),
    "seeds": lambda standing: Cell(str(len(standing.runs)), len(standing.runs)),
}


def _statistics_notes(metric: str, ran: Sequence[Standing], baseline: Standing | None) -> list[str]:
    if not ran:
        return []
    title = metric_title(metric)
    same = [standing.name for standing in ran if standing.same_with_any_seed]
    notes = [*seed_notes({standing.name: len(standing.runs) for standing in ran}, same), MARKS]
    if baseline is None:
        return [*notes, "There is no baseline to compare with."]
    return [
        *notes,
        f"Δ, p: {title} against {baseline.name}, the best baseline here; two-sided sign-flip "
        f"permutation test on the {title} of {len(baseline.ranks[0].rank):,} test targets, each "
        f"averaged over seeds ({PERMUTATIONS:,} permutations, seed {TEST_SEED}), not corrected for "
        "the number of rows.",
    ]


def _mix_notes(metric: str, standings: Sequence[Standing]) -> list[str]:
    mixes = [standing for standing in standings if standing.mixed]
    named = [{**run, "model": standing.name} for standing in mixes for run in standing.runs]
    baseline = best_baseline(standings, mixed=True)
    against = (
        f" Δ, p of mixes: against {baseline.name}, the best baseline, mixed or not."
        if baseline
        else ""
    )
    costs = " They cost what the model costs, but for eval s."
    return [f"{note}{against}{costs}" for note in mix_notes(named, metric_title(metric))]


def _failure_notes(standing: Standing) -> list[str]:
    seeds: dict[str, list[str]] = {}
    for seed, reason in standing.row.failed.items():
        seeds.setdefault(reason, []).append(seed)
    return [
        f"{standing.name} failed with seed {', '.join(failed)}: {reason}"
        for reason, failed in seeds.items()
    ]


def _settings_note(standing: Standing) -> str:
    name, row = standing.name, standing.row
    own = ", ".join(f"{setting}={value}" for setting, value in row.own.items())
    return f"{name}: {own}." if name == row.model else f"{name}: {row.model} with {own}."


def _tuned_note(standing: Standing) -> str:
    tuned = ", ".join(f"{setting}={value}" for setting, value in standing.row.tuned.items())
    return f"{standing.name}, tuned on validation: {tuned}."


def _cost_notes(ran: Sequence[Standing], devices: Sequence[str]) -> list[str]:
    if not ran:
        return []
    notes = [
        f"train s: without validation; eval s: all validation and the test; MiB: peak memory of "
        f"the device, on a CPU of the process. Means over seeds, on {'; '.join(devices)}."
    ]
    if not all(standing.alone for standing in ran):
        notes.append(f"{NOT_ALONE} Other runs went on meanwhile (jobs): seconds do not compare.")
    elif len(devices) > 1:
        notes.append("Seconds and memory compare on one device alone.")
    return notes
