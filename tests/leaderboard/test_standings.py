"""Means, places and the paired test."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.leaderboard.board import Row, read_board
from recbole_idiomoe.leaderboard.standings import (
    PERMUTATIONS,
    Standing,
    best_baseline,
    compare,
    marks,
    paired_p,
)
from recbole_idiomoe.protocol.ranks import NamedRanks
from tests.leaderboard import boards
from tests.leaderboard.boards import ranks_by_chance
from tests.leaderboard.conftest import Lead


def standing(name: str, values: list[float], ours: bool = False, worst: int = 10) -> Standing:
    about = {"alone": True, "parameters": {"total": 5}}
    runs = [{"test_result": {"ndcg@10": value}, **about} for value in values]
    ranks = [ranks_by_chance(f"{name} {seed}", worst) for seed, _ in enumerate(values)]
    return Standing(name, Row("SASRec", ours, {}, name), runs, ranks)


def test_the_test_is_that_of_all_permutations_of_signs() -> None:
    differences = np.array([0.5, -0.1, 0.9, 0.4, 0.3, -0.2, 0.7, 0.6])
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    means = (signs * differences).mean(axis=1)
    exact = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    assert paired_p(differences) == pytest.approx(exact, abs=0.005)
    assert paired_p(differences) == paired_p(-differences) == paired_p(differences)
    # Users for whom both do alike say nothing.
    assert paired_p(np.concatenate((differences, np.zeros(5000)))) == paired_p(differences)


def test_no_difference_and_a_clear_one() -> None:
    assert paired_p(np.zeros(10)) == 1
    assert paired_p(np.full(100, 0.1)) == pytest.approx(1 / (PERMUTATIONS + 1), rel=1.01)


def test_by_chance_it_is_as_often_small_as_it_should_be() -> None:
    random = np.random.default_rng(3)
    found = [paired_p(random.normal(size=30)) for _ in range(40)]
    assert 0.3 < np.mean(found) < 0.7 and sum(p < 0.05 for p in found) <= 6


def test_a_row_is_compared_user_by_user_over_seeds() -> None:
    base, ours = standing("base", [0.1, 0.3]), standing("ours", [0.3, 0.3], ours=True, worst=2)
    found = compare(ours, base, "ndcg@10")
    assert found.difference == pytest.approx(0.5) and found.p < 0.001
    both = np.mean([ranks.metric("ndcg@10") for ranks in base.ranks], axis=0)
    assert base.by_user("ndcg@10").tolist() == both.tolist()
    assert base.deviation("ndcg@10") == pytest.approx(0.2 / 2**0.5)
    assert standing("one", [0.1]).deviation("ndcg@10") is None


def test_the_best_baseline_is_the_first_that_ran_and_is_not_ours() -> None:
    ordered = [standing("a", [0.3], ours=True), standing("b", [0.2]), standing("c", [0.1])]
    assert best_baseline(ordered) is ordered[1]
    assert best_baseline([ordered[0], standing("failed", [])]) is None


def test_places_are_those_of_the_printed_digits() -> None:
    nan = float("nan")
    assert marks([0.1, 0.30001, nan, 0.3, 0.2]) == ["", "best", "", "best", "second"]
    assert marks([0.1]) == ["best"] and marks([nan]) == [""]


def test_rows_come_best_first(lead: Lead) -> None:
    result = lead("SASRec,IDIOMoE,GRU4Rec")
    values = [row["test"]["ndcg@10"] for row in result["rows"]]
    assert values == sorted(values, reverse=True)
    assert [row["ours"] for row in result["rows"]] == [True, False, False]
    ours, best, other = result["rows"]
    assert best["p"] is None and ours["difference"] > 0 > other["difference"]


def test_other_targets_do_not_compare(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    lead("SASRec")
    by_chance = boards.ranks_by_chance

    def of_others(name: str, most: int) -> NamedRanks:
        ranks = by_chance(name, most)
        return replace(ranks, user=ranks.user[::-1])

    monkeypatch.setattr(boards, "ranks_by_chance", of_others)
    with pytest.raises(IdiomoeError, match="IDIOMoE has other test targets on amazon-toys"):
        lead("IDIOMoE")


def test_a_board_names_no_user_and_no_item(lead: Lead) -> None:
    """Its folder can be passed on where the data cannot; what tables and pictures take is there."""
    lead("SASRec")
    (run,), (targets,) = Path("board/runs").glob("*.npz"), Path("board/targets").glob("*.npz")
    with np.load(run) as arrays:
        assert set(arrays) == {"rank"}
    with np.load(targets) as arrays:
        assert set(arrays) == {"digest", "history", "popularity"}
    board = read_board("board")
    ((_, ranks),) = board.results(board.rows["amazon-toys"]["SASRec"])
    assert len(ranks.rank) == len(ranks.history) == len(ranks.popularity) == boards.USERS
