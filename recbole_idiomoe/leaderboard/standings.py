"""Comparison of a leaderboard's rows: means over seeds, and a paired test over users."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import monte_carlo_test

from recbole_idiomoe.leaderboard.board import Board, Row
from recbole_idiomoe.protocol.ranks import Ranks
from recbole_idiomoe.report.extra_rows import same_with_any_seed

PERMUTATIONS, TEST_SEED = 9999, 0
BATCH = 200  # permutations at a time, to bound memory


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

    @cached_property
    def metrics(self) -> dict[str, tuple[float, ...]]:
        """Every test metric, with a value for each seed."""
        names = self.runs[0]["test_result"] if self.runs else ()
        return {name: tuple(run["test_result"][name] for run in self.runs) for name in names}

    def mean(self, metric: str) -> float:
        """The mean of ``metric`` over seeds; nan without a run."""
        return statistics.mean(self.metrics[metric]) if self.runs else math.nan

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


@dataclass(frozen=True)
class Comparison:
    """A row compared with the best baseline."""

    difference: float
    """Difference of the means, relative to the baseline's mean."""
    p: float
    """The p-value of :func:`paired_p`."""


def standings_of(board: Board, dataset: str, metric: str) -> list[Standing]:
    """The rows on ``dataset``, the best by ``metric`` first, failed rows last.

    A row whose runs have a mix is followed by its mix as a standing. Rows that wait for their
    first run are left out.

    Raises:
        IdiomoeError: a run cannot be read.
    """
    found = []
    for name, row in board.rows[dataset].items():
        for mixed in (False, True):
            kept = board.results(row, mixed=mixed)
            runs, ranks = [run for run, _ in kept], [ranks for _, ranks in kept]
            whole = f"{name} + {runs[0]['with']}" if mixed and runs else name
            if runs or (row.failed and not mixed):
                found.append(Standing(whole, row, runs, ranks, mixed))
    return sorted(found, key=lambda s: -s.mean(metric) if s.runs else math.inf)


def best_baseline(standings: Sequence[Standing], mixed: bool = False) -> Standing | None:
    """The best baseline with a run, from standings that are ordered best first.

    With ``mixed``, for a comparison with a mix, mixes of baselines count too.
    """
    return next((s for s in standings if s.runs and not s.row.ours and s.mixed <= mixed), None)


def compare(standing: Standing, baseline: Standing, metric: str) -> Comparison:
    """Compare ``standing`` with ``baseline``; both have finished runs."""
    base = baseline.mean(metric)
    difference = standing.mean(metric) / base - 1 if base else math.nan
    return Comparison(difference, paired_p(standing.by_user(metric) - baseline.by_user(metric)))


def paired_p(differences: np.ndarray) -> float:
    """The p-value of a two-sided sign-flip permutation test that the mean difference is 0.

    ``differences`` are by test target, (target_num,). With 9,999 permutations p is at least .0001.
    """
    # The sign of a zero does not matter: leaving out the many zeros saves most of the time.
    sample = differences[differences != 0]
    if not len(sample):
        return 1.0
    random = np.random.default_rng(TEST_SEED)

    def with_random_signs(size: tuple[int, int]) -> np.ndarray:
        return np.where(random.integers(2, size=size, dtype=bool), sample, -sample)

    result = monte_carlo_test(
        sample, with_random_signs, np.mean, n_resamples=PERMUTATIONS, batch=BATCH, vectorized=True
    )
    return float(result.pvalue)


def marks(values: Sequence[float]) -> list[str]:
    """``best``, ``second`` or an empty text for each value, compared at four decimals.

    Equal values share a place; nan has none.
    """
    printed = [round(value, 4) for value in values]
    places = sorted({value for value in printed if not math.isnan(value)}, reverse=True)
    named = dict(zip(places, ("best", "second"), strict=False))
    return [named.get(value, "") for value in printed]
