"""How the rows of a leaderboard compare: means over seeds, and a paired test over users."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import monte_carlo_test

from recbole_idiomoe.leaderboard.board import Board, Row
from recbole_idiomoe.protocol.ranks import Ranks
from recbole_idiomoe.report.tables import same_with_any_seed

PERMUTATIONS, TEST_SEED = 9999, 0
BATCH = 200  # permutations at a time, for memory's sake


@dataclass(frozen=True)
class Standing:
    """One row on one data set."""

    name: str
    row: Row
    runs: Sequence[dict[str, Any]]
    ranks: Sequence[Ranks]
    """Those of ``runs``, which go by seed."""
    mixed: bool = False
    """Whether these are the row's runs mixed with a counter, see ``mix`` in the settings."""

    @cached_property
    def metrics(self) -> dict[str, tuple[float, ...]]:
        """Every test metric, a value a seed."""
        names = self.runs[0]["test_result"] if self.runs else ()
        return {name: tuple(run["test_result"][name] for run in self.runs) for name in names}

    def mean(self, metric: str) -> float:
        """The mean of ``metric`` over seeds; nan if no run is there."""
        return statistics.mean(self.metrics[metric]) if self.runs else float("nan")

    @cached_property
    def same_with_any_seed(self) -> bool:
        """Whether the row draws nothing by chance, so that its seeds say nothing of a spread."""
        return same_with_any_seed(self.runs, "test_result")

    def deviation(self, metric: str) -> float | None:
        """The standard deviation over seeds (of a sample); None without two that could differ."""
        values = self.metrics.get(metric, ())
        if len(values) < 2 or self.same_with_any_seed:
            return None
        return statistics.stdev(values)

    def cost(self, name: str) -> float:
        """The mean of another number of the runs, as ``train_seconds``."""
        return statistics.mean(run[name] for run in self.runs)

    @property
    def alone(self) -> bool:
        """Whether no other run went on beside any of its runs: else seconds do not compare."""
        return all(run["alone"] for run in self.runs)

    def by_user(self, metric: str) -> np.ndarray:
        """``metric`` of every test target, averaged over seeds: (targets,)."""
        mean: np.ndarray = np.mean([ranks.metric(metric) for ranks in self.ranks], axis=0)
        return mean


@dataclass(frozen=True)
class Comparison:
    """A row against the best baseline."""

    difference: float
    """Of the means, relative to the baseline's."""
    p: float
    """See :func:`paired_p`."""


def standings_of(board: Board, dataset: str, metric: str) -> list[Standing]:
    """The rows on ``dataset``, the best by ``metric`` first, those without a run last.

    Each row's mix, if its runs have one, is another. Rows that wait for their first run are left
    out.

    Raises:
        IdiomoeError: runs that cannot be read.
    """
    found = []
    for name, row in board.rows[dataset].items():
        kept = board.results(row)
        if kept or row.failed:
            runs, ranks = [run for run, _ in kept], [ranks for _, ranks in kept]
            found.append(Standing(name, row, runs, ranks))
        if mixes := board.mixes(row):
            runs, ranks = [run for run, _ in mixes], [ranks for _, ranks in mixes]
            found.append(Standing(f"{name} + {runs[0]['with']}", row, runs, ranks, mixed=True))
    ran = [standing for standing in found if standing.runs]
    best_first = sorted(ran, key=lambda standing: -standing.mean(metric))
    return [*best_first, *(standing for standing in found if not standing.runs)]


def best_baseline(standings: Sequence[Standing], mixed: bool = False) -> Standing | None:
    """The first of ``standings``, best first, that is no model of ours and has run.

    Args:
        mixed: what is compared with it is mixed, so that it may be too.
    """
    return next((s for s in standings if s.runs and not s.row.ours and s.mixed <= mixed), None)


def compare(standing: Standing, baseline: Standing, metric: str) -> Comparison:
    """``standing``, which has run, against ``baseline``."""
    base = baseline.mean(metric)
    difference = standing.mean(metric) / base - 1 if base else float("nan")
    return Comparison(difference, paired_p(standing.by_user(metric) - baseline.by_user(metric)))


def paired_p(differences: np.ndarray) -> float:
    """How likely a mean as far from 0 as that of ``differences`` is if their signs are chance.

    Two-sided sign-flip permutation test; of 9,999 permutations, so at least .0001.

    Args:
        differences: one a test target, (targets,).
    """
    # Where both do alike, a sign changes nothing: this is most users, and all the time.
    sample = differences[differences != 0]
    if not len(sample):
        return 1.0
    random = np.random.default_rng(TEST_SEED)

    def with_signs_by_chance(size: tuple[int, int]) -> np.ndarray:
        return np.where(random.integers(2, size=size, dtype=bool), sample, -sample)

    result = monte_carlo_test(
        sample,
        with_signs_by_chance,
        lambda sample, axis: sample.mean(axis=axis),
        n_resamples=PERMUTATIONS,
        batch=BATCH,
        vectorized=True,
    )
    return float(result.pvalue)


def marks(values: Sequence[float]) -> list[str]:
    """``best``, ``second`` or nothing for each of ``values``, as the four printed digits have it.

    Equals share a place; a nan has none.
    """
    printed = [None if value != value else round(value, 4) for value in values]
    places = sorted({value for value in printed if value is not None}, reverse=True)[:2]
    named = dict(zip(places, ("best", "second"), strict=False))
    return ["" if value is None else named.get(value, "") for value in printed]
