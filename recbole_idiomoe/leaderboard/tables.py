"""A leaderboard's tables, one for each data set, independent of the output format."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole.evaluator.register import smaller_metrics

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.leaderboard.standings import (
    FLIPS,
    IDIOMOE,
    TEST_SEED,
    Comparison,
    Standing,
    best_baseline,
    best_idiomoe,
    compare,
    marks,
)
from recbole_idiomoe.report.extra_rows import (
    NLL_CHANGE,
    language_notes,
    mix_notes,
    nll_change,
    seed_notes,
)
from recbole_idiomoe.report.formatting import compact_number, metric_title

NOT_ALONE, AT_LIMIT = "*", "†"
MARKS = "The best is bold, the second best underlined."
DEVICE, STANDARD_ERROR = "device", "SE"
OF_BASELINE, OF_IDIOMOE = ("Δ", "p"), (f"Δ {IDIOMOE}", f"p {IDIOMOE}")
COMPARISONS = (*OF_BASELINE, *OF_IDIOMOE)
"""Titles of the differences and p-values against the best baseline, and against IDIOMoE."""
_PAPER_FILE = "quick_start_config/paper.yaml"
_TOLD = (
    "freeze",
    "item_init",
    "text_smoothing",
    "transition_smoothing",
    "ema_decay",
    "segment_order",
)
"""Settings that are named where a row has others than the paper."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | str = ""
    """The value that its column is sorted by."""
    mark: str = ""
    """``best``, ``second`` or empty."""


Column = Callable[[Standing], Cell | None]
"""The cell of a row; None is shown as ``-``."""


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
    from_idiomoe: dict[str, Comparison]
    """Each row's comparison with IDIOMoE, by name."""

    def with_columns(self, keep: Callable[[str], bool]) -> Table:
        """The table with the first column, and those others whose title ``keep`` accepts."""
        kept = [n for n, title in enumerate(self.header) if n == 0 or keep(title)]
        rows = [[row[n] for n in kept] for row in self.rows]
        return replace(self, header=[self.header[n] for n in kept], rows=rows)


def table_of(dataset: str, metric: str, standings: Sequence[Standing]) -> Table:
    """The table of the rows in ``standings``, which are ordered best first."""
    ran = [standing for standing in standings if standing.runs]
    comparisons, from_idiomoe = compare(
        [_pairs(standings, metric, best) for best in (best_baseline, best_idiomoe)], metric
    )
    columns: dict[str, Column] = {"row": _name}
    for name in _shown(metric, ran):
        columns[metric_title(name)] = _metric_column(name, ran)
        if name == metric and any(s.standard_error(metric) is not None for s in ran):
            columns[STANDARD_ERROR] = lambda standing: _standard_error(standing, metric)
    for titles, found in ((OF_BASELINE, comparisons), (OF_IDIOMOE, from_idiomoe)):
        if found:
            columns |= _comparison_columns(titles, found)
    # Nobody has published a variant or a mix, whose name differs from its model's.
    cited = {s.name: published(s.name, dataset, metric) for s in standings if s.name == s.row.model}
    if any(cited.values()):
        columns[f"published {metric_title(metric)}"] = lambda s: _cited(cited.get(s.name))
    if any("language" in run for s in ran for run in s.runs):
        columns[NLL_CHANGE] = _language
    if any(standing.row.tuned for standing in standings):
        columns["settings"] = lambda standing: _word(
            "tuned" if standing.row.tuned else "own" if standing.row.own else "default"
        )
    columns["kind"] = lambda standing: _word(standing.kind)
    columns |= _COSTS
    devices = list(dict.fromkeys(run["device"] for s in ran for run in s.runs))
    if len(devices) > 1:
        columns[DEVICE] = lambda standing: _word(
            "; ".join(dict.fromkeys(run["device"] for run in standing.runs)) or "-"
        )
    rows = [[cell(standing) or Cell("-") for cell in columns.values()] for standing in standings]
    notes = [
        *_statistics_notes(metric, standings),
        *_mix_notes(metric, standings),
        *_limit_notes(ran),
        *_paper_notes([s for s in ran if s.row.ours and not s.mixed]),
        *language_notes([{**run, "model": s.label} for s in ran for run in s.runs], values=False),
        *_cost_notes(ran, devices),
        *(
            f"Published, of another protocol, {name}: {sources()[name]}."
            for name in dict.fromkeys(source for found in cited.values() for source in found)
        ),
        *_row_notes([standing for standing in standings if not standing.mixed]),
    ]
    return Table(
        dataset, metric, list(columns), rows, notes, list(standings), comparisons, from_idiomoe
    )


def _pairs(
    standings: Sequence[Standing], metric: str, best: Callable[..., Standing | None]
) -> list[tuple[Standing, Standing]]:
    """Every row beside the row that ``best`` chooses, mixes beside the best that may be mixed."""
    ran = [standing for standing in standings if standing.runs]
    chosen = {mixed: best(standings, metric, mixed) for mixed in (False, True)}
    return [(s, against) for s in ran if (against := chosen[s.mixed]) and s is not against]


def _name(standing: Standing) -> Cell:
    label = standing.label
    shown = standing.with_mark(AT_LIMIT, label) if standing.at_limit else label
    return Cell(shown, label.lower())


def _standard_error(standing: Standing, metric: str) -> Cell | None:
    error = standing.standard_error(metric)
    return None if error is None else Cell(f"{error:.4f}", error)


def _comparison_columns(
    titles: tuple[str, str], found: Mapping[str, Comparison]
) -> dict[str, Column]:
    difference, p = titles
    return {
        difference: lambda standing: _difference(found.get(standing.name)),
        p: lambda standing: _p(found.get(standing.name)),
    }


def _shown(metric: str, ran: Sequence[Standing]) -> list[str]:
    """``metric``, then the other metrics at its cutoff; the CSV file has all of them."""
    cutoff = metric.partition("@")[1:]
    measured = (name for standing in ran for name in standing.metrics)
    same = [name for name in measured if name.partition("@")[1:] == cutoff]
    return list(dict.fromkeys([metric, *same]))


def _word(text: str) -> Cell:
    return Cell(text, text)


def _metric_column(name: str, ran: Sequence[Standing]) -> Column:
    means = [s.mean(name) if name in s.metrics else math.nan for s in ran]
    sign = -1 if name.partition("@")[0] in smaller_metrics else 1
    marked = dict(zip((s.name for s in ran), marks([sign * mean for mean in means]), strict=True))

    def column(standing: Standing) -> Cell | None:
        if not standing.runs:
            return Cell("failed")
        if name not in standing.metrics:
            return None
        mean, deviation = standing.mean(name), standing.deviation(name)
        spread = "" if deviation is None else f" ± {deviation:.4f}"
        return Cell(f"{mean:.4f}{spread}", mean, marked[standing.name])

    return column


def _difference(found: Comparison | None) -> Cell | None:
    if found is None or math.isnan(found.difference):
        return None
    return Cell(f"{found.difference:+.1%}", found.difference)


def _p(found: Comparison | None) -> Cell | None:
    if found is None:
        return None
    return Cell("< .001" if found.p < 0.001 else f"{found.p:.3f}".lstrip("0"), found.p)


def _cited(found: Mapping[str, float] | None) -> Cell | None:
    if not found:
        return None
    text = "; ".join(f"{value:.4f} ({source})" for source, value in found.items())
    return Cell(text, next(iter(found.values())))


def published(model: str, dataset: str, metric: str) -> dict[str, float]:
    """The published values of ``metric``, for example ``ndcg@10``, by short name of the source."""
    found = _published()["numbers"].get(dataset, {}).get(model, {})
    return {source: numbers[metric] for source, numbers in found.items() if metric in numbers}


def sources() -> dict[str, str]:
    """The citation and the protocol of each source of published values, by its short name."""
    found = _published()["sources"]
    return {name: f"{about['cite']}: {about['protocol']}" for name, about in found.items()}


def _published() -> dict[str, Any]:
    return yaml_files.read_settings(yaml_files.properties_path() / "published.yaml")


def _language(standing: Standing) -> Cell | None:
    changes = [run["language"]["nll_change"] for run in standing.runs if "language" in run]
    if not changes:
        return None
    mean = statistics.mean(changes)
    # The mean of changes that are not 0 may be 0.
    return Cell(nll_change(mean) if any(changes) else nll_change(0), mean)


def _cost(name: str, form: str) -> Column:
    def column(standing: Standing) -> Cell | None:
        if not standing.runs:
            return None
        value = standing.cost(name)
        shared = name.endswith("_seconds") and not standing.alone
        return Cell(form.format(value) + NOT_ALONE * shared, value)

    return column


def _parameters(standing: Standing) -> Cell | None:
    if not standing.runs:
        return None
    total = standing.runs[0]["parameters"]["total"]
    return Cell(compact_number(total), total)


_COSTS: dict[str, Column] = {
    "train s": _cost("train_seconds", "{:,.1f}"),
    "eval s": _cost("eval_seconds", "{:,.1f}"),
    "epochs": _cost("epochs", "{:.0f}"),
    "params": _parameters,
    "MiB": _cost("peak_memory_mib", "{:,.0f}"),
    "seeds": lambda standing: Cell(str(len(standing.runs)), len(standing.runs)),
}


def is_cost(title: str) -> bool:
    """Whether the column with this title has a cost and not a metric."""
    return title in _COSTS or title == DEVICE


def _statistics_notes(metric: str, standings: Sequence[Standing]) -> list[str]:
    ran = [standing for standing in standings if standing.runs]
    if not ran:
        return []
    title = metric_title(metric)
    same = [standing.label for standing in ran if standing.same_with_any_seed]
    targets = len(ran[0].ranks[0].rank)
    notes = [
        *seed_notes({standing.label: len(standing.runs) for standing in ran}, same),
        f"{STANDARD_ERROR}: standard error of {title} over the {targets:,} test targets.",
        MARKS,
    ]
    against = []
    if baseline := best_baseline(standings, metric):
        against.append(f"{', '.join(OF_BASELINE)}: against {baseline.label}, the best baseline")
    else:
        notes.append("There is no baseline to compare with on validation.")
    if idiomoe := best_idiomoe(standings, metric):
        against.append(f"{', '.join(OF_IDIOMOE)}: against {idiomoe.label}")
    if against:
        notes.append(
            f"{'; '.join(against)}, by {title} on validation. p: two-sided sign-flip permutation "
            f"test on the {title} of each test target, averaged over seeds ({FLIPS:,} flips, seed "
            f"{TEST_SEED}), after Holm's correction over the rows of a column."
        )
    return notes


def _mix_notes(metric: str, standings: Sequence[Standing]) -> list[str]:
    named = [{**run, "model": s.label} for s in standings if s.mixed for run in s.runs]
    mixes = [best(standings, metric, True) for best in (best_baseline, best_idiomoe)]
    against = " and ".join(f"{best.label}" for best in mixes if best)
    said = f" Δ, p of mixes: against {against}, the best on validation, mixed or not."
    costs = " They cost what the model costs, but for eval s."
    notes = mix_notes(named, metric_title(metric))
    return [f"{note}{said if against else ''}{costs}" for note in notes]


def _limit_notes(ran: Sequence[Standing]) -> list[str]:
    """Which rows might have improved with more epochs."""
    at_limit = [
        f"{s.label} epoch {s.runs[0]['settings']['epochs']} in {s.at_limit} of {len(s.runs)} runs"
        for s in ran
        if s.at_limit and not s.mixed
    ]
    if not at_limit:
        return []
    return [
        f"{AT_LIMIT} May not have converged, as the best epoch is the last one allowed: "
        f"{'; '.join(at_limit)}. The learning rate of this package's language models falls to 0 "
        "by that epoch, that of the others does not."
    ]


def _paper_notes(ours: Sequence[Standing]) -> list[str]:
    """How IDIOMoE and its controls were run, where it is not as in the paper."""
    paper = yaml_files.read_settings(yaml_files.properties_path() / _PAPER_FILE)
    rows: dict[str, list[str]] = defaultdict(list)
    for standing in ours:
        settings = standing.runs[0]["settings"]
        other = {name: settings[name] for name in _TOLD if settings.get(name) != paper[name]}
        if other:
            rows[_listed(other)].append(standing.label)
    as_printed = _listed({name: paper[name] for name in _TOLD})
    notes = [f"{', '.join(names)}: {listed}." for listed, names in rows.items()]
    return [f"Not as in the paper ({as_printed}): {' '.join(notes)}"] if notes else []


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


def _row_notes(standings: Sequence[Standing]) -> list[str]:
    """Which runs failed, then the rows' own settings, then their tuned settings."""
    failures, own, tuned = [], [], []
    for standing in standings:
        name, row = standing.label, standing.row
        seeds: dict[str, list[str]] = defaultdict(list)
        for seed, reason in row.failed.items():
            seeds[reason].append(seed)
        for reason, failed in seeds.items():
            failures.append(f"{name} failed with seed {', '.join(failed)}: {reason}")
        if row.own:
            model = "" if standing.name == row.model else f"{row.model} with "
            own.append(f"{name}: {model}{_listed(row.own)}.")
        if row.tuned:
            tuned.append(f"{name}, tuned on validation: {_listed(row.tuned)}.")
    return [*failures, *own, *tuned]


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{setting}={value}" for setting, value in settings.items())
