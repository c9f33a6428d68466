"""Whatever a recommender is asked: a right list, or one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recbole_idiomoe.base.errors import IdiomoeError
from tests.recommend.test_session import IDS, ITEMS, build

RECOMMENDER = build(max_history=7)
KNOWN = st.sampled_from(IDS)
HISTORY = st.lists(KNOWN, max_size=120)
K = st.one_of(st.integers(-3, 60), st.sampled_from([0, 10**12, -(10**12)]))
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), KNOWN)
    | st.binary(max_size=3),
    lambda part: (
        st.lists(part, max_size=4)
        | st.tuples(part, part)
        | st.dictionaries(st.text(max_size=2), part, max_size=2)
        | st.sets(KNOWN, max_size=3)
        | st.just(np.array(IDS[:3]))
    ),
)


@given(HISTORY, K, st.booleans())
@example(IDS, 5, True)
@example(IDS, 10**12, False)
@example(["i3"] * 500, 40, True)
@example([], 5, True)
def test_any_history_and_k(history: list[str], k: int, exclude_seen: bool) -> None:
    try:
        found = RECOMMENDER.recommend(history, k=k, exclude_seen=exclude_seen)
    except IdiomoeError as error:
        assert len(str(error).splitlines()) == 1
        assert ("k=" in str(error) and k < 1) or ("is empty" in str(error) and not history)
        return
    assert k >= 1 and history
    left = set(IDS) - set(history) if exclude_seen else set(IDS)
    ids = [item.item_id for item in found]
    assert len(ids) == len(set(ids)) == min(k, len(left)) and set(ids) <= left
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    session = RECOMMENDER.session(history[:-1])
    session.add(history[-1])
    again = session.recommend(k=k, exclude_seen=exclude_seen)
    np.testing.assert_allclose([item.score for item in again], scores, rtol=1e-3, atol=1e-4)


@given(
    st.lists(st.lists(KNOWN, min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 9)
)
def test_lists_of_histories_are_as_one_by_one(histories: list[list[str]], k: int) -> None:
    together = RECOMMENDER.recommend(histories, k=k)
    for history, found in zip(histories, together, strict=True):
        alone = RECOMMENDER.recommend(history, k=k)
        assert len(found) == len(alone)
        scores = [[item.score for item in each] for each in (found, alone)]
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5)


def is_history(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


@given(ANYTHING, ANYTHING, ANYTHING)
@example(None, 5, None)
@example(5, 5, None)
@example([["i1"], "i2"], 5, None)
@example(["i1", ["i2"]], 5, None)
@example({"i1": 1}, 5, None)
@example(["i1"], "5", None)
@example(["i1"], 2.5, None)
@example(["i1"], float("nan"), None)
@example(["i1"], None, None)
@example(["i1"], 5, b"words")
@example(np.array(IDS[:2]), 3, None)
def test_wrong_types(history: Any, k: Any, query: Any) -> None:
    for ask in (
        lambda: RECOMMENDER.recommend(history, k=k, query=query),
        lambda: [RECOMMENDER.session(history).recommend(k=k, query=query)],
    ):
        try:
            found = ask()
        except IdiomoeError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        else:
            assert isinstance(k, int) and k >= 1 and isinstance(history, list | tuple | np.ndarray)
            assert len(found) >= 1 or not history


@given(ANYTHING)
def test_a_session_takes_no_unknown_item(item: Any) -> None:
    session = RECOMMENDER.session(["i1"])
    try:
        session.add(item)
    except IdiomoeError as error:
        assert len(str(error).splitlines()) == 1 and session.history == ["i1"]
        assert not (isinstance(item, str) and item in IDS)
    else:
        assert item in IDS


def test_scores_that_are_no_numbers_are_no_recommendation() -> None:
    recommender = build()
    assert recommender.catalog_lm is not None
    with torch.no_grad():
        for parameter in recommender.catalog_lm.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(IdiomoeError, match="nan"):
        recommender.recommend(["i1"])
    assert len(IDS) == ITEMS
