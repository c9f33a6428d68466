"""Means, places and the paired test."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import permutation_test

from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.leaderboard.board import Row, read_board
from recbole_idiomoe.leaderboard.standings import (
    FLIPS,
    Standing,
    best_baseline,
    best_idiomoe,
    compare,
    holm,
    marks,
    paired_p,
)
from recbole_idiomoe.protocol.ranks import NamedRanks
from tests.leaderboard import boards
from tests.leaderboard.boards import ranks_by_chance
from tests.leaderboard.conftest import Lead


def standing(
    name: str,
    values: list[float],
    ours: bool = False,
    worst: int = 10,
    valid: float | None = None,
    model: str = "SASRec",
) -> Standing:
    about = {"alone": True, "parameters": {"total": 5}}
    about["best_valid_result"] = {} if valid is None else {"ndcg@10": valid}
    runs = [{"test_result": {"ndcg@10": value}, **about} for value in values]
    ranks = [ranks_by_chance(f"{name} {seed}", worst) for seed, _ in enumerate(values)]
    return Standing(name, Row(model, ours, {}, name), runs, ranks)


def p_of(*differences: float) -> float:
    return float(paired_p(np.array(differences)[:, None])[0])


def test_the_test_is_that_of_all_flips_of_signs() -> None:
    differences = np.array([0.5, -0.1, 0.9, 0.4, 0.3, -0.2, 0.7, 0.6])
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    means = (signs * differences).mean(axis=1)
    exact = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    found = p_of(*differences)
    assert found == pytest.approx(exact, abs=0.002)
    every = permutation_test((differences,), np.mean, permutation_type="samples")
    assert found == pytest.approx(every.pvalue, abs=0.002)
    assert p_of(*-differences) == found == p_of(*differences)
    # Users for whom both do alike say nothing.
    assert p_of(*differences, *np.zeros(5000)) == found


def test_tests_of_many_rows_are_those_of_each_row() -> None:
    random = np.random.default_rng(2)
    differences = random.normal(loc=[0, 0.2, 0.5], size=(300, 3))
    for together, alone in zip(paired_p(differences), differences.T, strict=True):
        assert together == p_of(*alone)


def test_no_difference_and_a_clear_one() -> None:
    assert p_of(*np.zeros(10)) == 1
    # No flip is as far from 0; two-sided and not one-sided.
    assert p_of(*np.full(100, 0.1)) == 1 / (FLIPS + 1) == 0.00001
    assert p_of(1.0, 1.0, 1.0) == pytest.approx(2 / 8, abs=0.005)


def test_by_chance_it_is_as_often_small_as_it_should_be() -> None:
    found = paired_p(np.random.default_rng(3).normal(size=(30, 200)))
    assert 0.4 < np.mean(found) < 0.6 and 2 <= sum(found < 0.05) <= 20


def test_p_is_corrected_for_the_number_of_rows() -> None:
    # 4 * .01, 3 * .02, 2 * .03 (not below the one before), 1 * .9
    assert holm(np.array([0.03, 0.01, 0.9, 0.02])).tolist() == pytest.approx(
        [0.06, 0.04, 0.9, 0.06]
    )
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0] and holm(np.array([])).tolist() == []


def test_a_row_is_compared_user_by_user_over_seeds() -> None:
    base, ours = standing("base", [0.1, 0.3]), standing("ours", [0.3, 0.3], ours=True, worst=2)
    ((found,),) = ([*family.values()] for family in compare([[(ours, base)]], "ndcg@10"))
    assert found.difference == pytest.approx(0.5) and found.p < 0.001
    both = np.mean([ranks.metric("ndcg@10") for ranks in base.ranks], axis=0)
    assert base.by_user("ndcg@10").tolist() == both.tolist()
    assert base.deviation("ndcg@10") == pytest.approx(0.2 / 2**0.5)
    assert standing("one", [0.1]).deviation("ndcg@10") is None


def test_the_error_over_users_is_that_of_their_mean() -> None:
    row = standing("row", [0.1, 0.3])
    by_user = row.by_user("ndcg@10")
    wanted = by_user.std(ddof=1) / len(by_user) ** 0.5
    assert row.standard_error("ndcg@10") == pytest.approx(wanted) and wanted > 0
    assert standing("failed", []).standard_error("ndcg@10") is None
    assert row.standard_error("gauc") is None


def test_the_best_baseline_is_chosen_on_validation_and_is_not_ours() -> None:
    ordered = [
        standing("a", [0.3], ours=True, valid=0.9),
        standing("luckiest on the test", [0.2], valid=0.1),
        standing("best on validation", [0.1], valid=0.2),
        standing("never validated", [0.15]),
        standing("failed", []),
    ]
    assert best_baseline(ordered, "ndcg@10") is ordered[2]
    assert best_baseline([ordered[0], *ordered[3:]], "ndcg@10") is None


def test_the_row_of_idiomoe_is_chosen_on_validation_too() -> None:
    ordered = [
        standing("control", [0.4], ours=True, valid=0.9, model="ItemLLM"),
        standing("one", [0.3], ours=True, valid=0.1, model="IDIOMoE"),
        standing("other", [0.2], ours=True, valid=0.2, model="IDIOMoE"),
    ]
    assert best_idiomoe(ordered, "ndcg@10") is ordered[2]
    assert [s.kind for s in ordered] == ["control", "IDIOMoE", "IDIOMoE"]
    assert best_idiomoe(ordered[:1], "ndcg@10") is None


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
