"""What TPE proposes: inside the space, from what was tried and the seed alone, ever better."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from recbole_idiomoe.base.errors import MissingLibraryError
from recbole_idiomoe.tuning.space import SearchSpace, propose

SPACE = SearchSpace(
    "here",
    {
        "rate": {"low": 0.0001, "high": 0.1, "log": True},
        "layers": {"low": 1, "high": 4},
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
        "kind": {"choices": ["a", None, True, 3]},
    },
)


def search(number: int, bigger: bool = True, seed: int = 1) -> list[tuple[dict[str, Any], float]]:
    """A search whose best is at a rate of .003, with most layers."""
    tried: list[tuple[dict[str, Any], float]] = []
    for _ in range(number):
        settings = propose(SPACE, [({"rate": 0.01}, 0.0), *tried], seed, bigger)
        value = settings["layers"] - abs(math.log(settings["rate"] / 0.003))
        tried.append((settings, value if bigger else -value))
    return tried


@pytest.fixture(autouse=True)
def optuna() -> Any:
    return pytest.importorskip("optuna")


def test_proposals_are_of_the_space() -> None:
    for settings, _ in search(15):
        assert list(settings) == list(SPACE.entries)
        assert 0.0001 <= settings["rate"] <= 0.1
        assert settings["layers"] in (1, 2, 3, 4) and type(settings["layers"]) is int
        assert min(abs(settings["dropout"] - n / 10) for n in range(6)) < 1e-9
        assert any(settings["kind"] is kind for kind in ("a", None, True, 3))


def test_a_search_can_be_had_again_and_another_seed_is_another_search() -> None:
    assert search(12) == search(12)
    assert search(3) != search(3, seed=2)
    first, second = (settings for settings, _ in search(2))
    assert first != second


@pytest.mark.parametrize("bigger", [True, False])
def test_proposals_get_better(bigger: bool) -> None:
    values = [value if bigger else -value for _, value in search(35, bigger)]
    assert min(values[-10:]) > sum(values[:10]) / 10  # of which the first ten are drawn blindly


def test_a_failure_counts_as_the_worst_and_is_avoided() -> None:
    tried: list[tuple[dict[str, Any], float | None]] = [({"rate": 0.01}, 0.0)]
    for _ in range(40):
        settings = propose(SPACE, tried, 1, True)
        tried.append((settings, None if settings["layers"] > 2 else settings["layers"] / 10))
    failed = [value is None for _, value in tried[1:]]
    assert sum(failed[:10]) >= 3 and sum(failed[-10:]) <= 1


def test_without_optuna_the_mend_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingLibraryError, match=r"--tune needs optuna: pip install optuna$"):
        propose(SPACE, [({}, 0.0)], 1, True)
