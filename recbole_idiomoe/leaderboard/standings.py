"""Comparison of a leaderboard's rows: means over seeds, and paired tests over users."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import sem

from recbole_idiomoe.leaderboard.board import Board, Row
from recbole_idiomoe.models.registry import what_is_trained
from recbole_idiomoe.protocol.ranks import Ranks, is_ranked
from recbole_idiomoe.report.extra_rows import same_with_any_seed

FLIPS, TEST_SEED = 99_999, 0
SIGNS = 2**24  # drawn at a time, to bound memory
_ROUNDING = 1e-5  # of sums in float32, relative
IDIOMOE = "IDIOMoE"


@dataclass(frozen=True)
class Standing:
    """One row on one data set."""

    name: str
    row: Row
    runs: Sequence[dict[str, Any]]
    ranks: Sequence[Ranks]
    """Ranks of the test targets, for each of ``runs``."""
    mixed: bool = False
    """Whether these are the row's mixes with a counting model; see the setting ``mix``."""
    at_limit: int = 0
    """Runs whose best epoch is the last that ``epochs`` allows."""

    @property
    def label(self) -> str:
        """The name that tables print: with what is trained of a language model."""
        trained = what_is_trained(self.row.model, self.runs[0]["settings"]) if self.runs else ""
        if not trained or "freeze" in self.row.own:  # then the row's own name tells
            return self.name
        return self.with_mark(f" ({trained})", self.name)

    def with_mark(self, mark: str, name: str) -> str:
        """``name``, of the row or its mix, with ``mark`` after the name of the row."""
        mixed_with = f" + {self.runs[0]['with']}" if self.mixed else ""
        return f"{name.removesuffix(mixed_with)}{mark}{mixed_with}"

    @property
    def kind(self) -> str:
        """``IDIOMoE``, ``control`` (of the paper's, which share its settings) or ``baseline``."""
        if self.row.model == IDIOMOE:
            return IDIOMOE
        return "control" if self.row.ours else "baseline"

    @cached_property
    def metrics(self) -> dict[str, tuple[float, ...]]:
        """Every test metric, with a value for each seed."""
        names = self.runs[0]["test_result"] if self.runs else ()
        return {name: tuple(run["test_result"][name] for run in self.runs) for name in names}

    def mean(self, metric: str) -> float:
        """The mean of ``metric`` over seeds; nan without a run."""
        return statistics.mean(self.metrics[metric]) if self.runs else math.nan

    def valid_mean(self, metric: str) -> float:
        """The mean of ``metric`` on validation over seeds; nan where it was not measured."""
        values = [run["best_valid_result"].get(metric, math.nan) for run in self.runs]
        return statistics.mean(values) if values else math.nan

    @cached_property
    def same_with_any_seed(self) -> bool:
        """Whether the row's model is deterministic, so that its seeds have no spread."""
        return same_with_any_seed(self.runs, "test_result")

    def deviation(self, metric: str) -> float | None:
        """The sample standard deviation over seeds; None for one seed or a deterministic model."""
        values = self.metrics.get(metric, ())
        if len(values) < 2 or self.same_with_any_seed:
            return None
        return statistics.stdev(values)

    def cost(self, name: str) -> float:
        """The mean over runs of a cost, for example ``train_seconds``."""
        return statistics.mean(run[name] for run in self.runs)

    @property
    def alone(self) -> bool:
        """Whether all its runs ran without another beside them, so that seconds are comparable."""
        return all(run["alone"] for run in self.runs)

    def by_user(self, metric: str) -> np.ndarray:
        """``metric`` of every test target, averaged over seeds: (target_num,)."""
        return np.asarray(np.mean([ranks.metric(metric) for ranks in self.ranks], axis=0))

    def standard_error(self, metric: str) -> float | None:
        """The standard error of :meth:`mean` over test targets, as if users were drawn anew.

        None without a run, with a single target, or if ``metric`` does not follow from ranks.
        """
        if not self.ranks or len(self.ranks[0].rank) < 2 or not is_ranked(metric):
            return None
        return float(sem(self.by_user(metric)))


@dataclass(frozen=True)
class Comparison:
    """A row compared with a reference row."""

    difference: float
    """Difference of the means, relative to the reference's mean."""
    p: float
    """The p-value of :func:`paired_p`, after Holm's correction over the rows of the table."""


def standings_of(board: Board, dataset: str, metric: str) -> list[Standing]:
    """The rows on ``dataset``, the best by ``metric`` first, failed rows last.

    A row whose runs have a mix is followed by its mix as a standing. Rows that wait for their
    first run are left out.

    Raises:
        IdiomoeError: a run cannot be read.
    """
    found = []
    for name, row in board.rows[dataset].items():
        at_limit = 0
        for mixed in (False, True):
            kept = board.results(row, mixed=mixed)
            runs, ranks = [run for run, _ in kept], [ranks for _, ranks in kept]
            at_limit = at_limit if mixed else sum(map(_ends_at_its_best, runs))
            whole = f"{name} + {runs[0]['with']}" if mixed and runs else name
            if runs or (row.failed and not mixed):
                found.append(Standing(whole, row, runs, ranks, mixed, at_limit))
    return sorted(found, key=lambda s: -s.mean(metric) if s.runs else math.inf)


def _ends_at_its_best(run: Mapping[str, Any]) -> bool:
    """Whether the best epoch of ``run`` is the last that it was allowed."""
    curve = run["learning_curve"]
    best = max(curve, key=lambda point: point["valid"], default={"epoch": 0})
    return bool(best["epoch"] and best["epoch"] == run["settings"]["epochs"])


def best_baseline(
    standings: Sequence[Standing], metric: str, mixed: bool = False
) -> Standing | None:
    """The baseline with the best ``metric`` on validation; the test has no part in the choice.

    With ``mixed``, for a comparison with a mix, mixes of baselines count too.
    """
    return _best_on_validation(standings, metric, mixed, lambda s: not s.row.ours)


def best_idiomoe(
    standings: Sequence[Standing], metric: str, mixed: bool = False
) -> Standing | None:
    """The row of IDIOMoE with the best ``metric`` on validation, as in :func:`best_baseline`."""
    return _best_on_validation(standings, metric, mixed, lambda s: s.kind == IDIOMOE)


def _best_on_validation(
    standings: Sequence[Standing], metric: str, mixed: bool, is_wanted: Callable[[Standing], bool]
) -> Standing | None:
    wanted = [s for s in standings if s.runs and s.mixed <= mixed and is_wanted(s)]
    validated = [s for s in wanted if not math.isnan(s.valid_mean(metric))]
    return max(validated, key=lambda s: s.valid_mean(metric), default=None)


def compare(
    families: Sequence[Sequence[tuple[Standing, Standing]]], metric: str
) -> list[dict[str, Comparison]]:
    """Compare the first of each pair with the second; all have finished runs.

    Args:
        families: pairs of rows; Holm's correction is over the pairs of a family.
        metric: what is compared, of each test target.

    Returns:
        For each family the comparisons, by the name of the first.
    """
    pairs = [pair for family in families for pair in family]
    by_user = {s.name: s.by_user(metric) for pair in pairs for s in pair}
    differences = [by_user[s.name] - by_user[reference.name] for s, reference in pairs]
    p = iter(paired_p(np.stack(differences, axis=1)) if pairs else ())
    found = []
    for family in families:
        corrected = holm(np.array([next(p) for _ in family])).tolist()
        means = [(s, s.mean(metric), reference.mean(metric)) for s, reference in family]
        found.append(
            {
                s.name: Comparison(mean / base - 1 if base else math.nan, own_p)
                for (s, mean, base), own_p in zip(means, corrected, strict=True)
            }
        )
    return found


def paired_p(differences: np.ndarray) -> np.ndarray:
    """The p-values of two-sided sign-flip permutation tests that mean differences are 0.

    With b of the :data:`FLIPS` random flips at least as far from 0 as what was observed, p is
    (1 + b) / (1 + FLIPS), which is exact for random flips and at least .00001.
    ``scipy.stats.permutation_test`` tests the same, but one column at a time and many times slower.

    Args:
        differences: by test target and comparison, shape ``(target_num, n)``.

    Returns:
        Shape ``(n,)``.
    """
    # The sign of a zero does not matter: leaving out the many zeros saves most of the time.
    sample = differences[np.any(differences != 0, axis=1)].astype(np.float32)
    total = sample.sum(axis=0)
    least = np.abs(total) * (1 - _ROUNDING)
    random = np.random.default_rng(TEST_SEED)
    as_far = np.zeros(sample.shape[1], dtype=np.int64)
    size = max(1, SIGNS // max(1, len(sample)))
    for start in range(0, FLIPS, size):
        drawn = random.bytes(min(size, FLIPS - start) * -(-len(sample) // 8))
        packed = np.frombuffer(drawn, dtype=np.uint8).reshape(min(size, FLIPS - start), -1)
        kept = np.unpackbits(packed, axis=1, count=len(sample)).astype(np.float32)
        as_far += (np.abs(2 * (kept @ sample) - total) >= least).sum(axis=0)
    return np.asarray((1 + as_far) / (1 + FLIPS))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values ``(n,)`` for their number."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def marks(values: Sequence[float]) -> list[str]:
    """``best``, ``second`` or an empty text for each value, compared at four decimals.

    Equal values share a place; nan has none.
    """
    printed = [round(value, 4) for value in values]
    places = sorted({value for value in printed if not math.isnan(value)}, reverse=True)
    named = dict(zip(places, ("best", "second"), strict=False))
    return [named.get(value, "") for value in printed]
