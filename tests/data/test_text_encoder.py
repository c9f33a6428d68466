"""Text vectors of a catalogue that grows: what was trained on decides them."""

from dataclasses import replace

import numpy as np
import pytest

from recbole_idiomoe.data import text_encoder
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.text_encoder import item_vectors

COLOURS, THINGS = ("red", "green", "blue"), ("train", "doll", "map", "robot")
TEXTS = ["", *(f"{colour} {thing}" for colour in COLOURS for thing in THINGS), "", "a bear"]
CATALOG = Catalog([f"i{n}" for n in range(len(TEXTS))], TEXTS, TEXTS)


@pytest.mark.parametrize("dim", [5, 100])
def test_items_that_come_later_change_no_vector(dim: int) -> None:
    before = item_vectors(CATALOG, "tfidf", dim=dim, seed=3)
    later = ["red doll", "a yellow bear", "yellow"]
    texts = TEXTS + later
    names = [f"i{n}" for n in range(len(texts))]
    untrained = list(range(len(TEXTS), len(texts)))
    after = item_vectors(Catalog(names, texts, texts, untrained), "tfidf", dim=dim, seed=3)
    assert np.array_equal(after[: len(TEXTS)], before)
    # Who reads alike has the same vector; unknown words say nothing.
    np.testing.assert_allclose(after[-3], before[TEXTS.index("red doll")], atol=1e-6)
    assert after[-2].any() and not after[-1].any()


def test_items_in_between_that_were_not_trained_on_are_vectors_too() -> None:
    untrained = [2, 3]
    found = item_vectors(replace(CATALOG, untrained=untrained), "tfidf", dim=5)
    kept = [row for row in range(len(TEXTS)) if row not in untrained]
    texts = [TEXTS[row] for row in kept]
    alone = item_vectors(Catalog(texts, texts, texts), "tfidf", dim=5)
    assert np.array_equal(found[kept], alone)
    assert found[untrained].any(axis=1).all()


def test_of_many_texts_some_decide_and_all_have_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    every = item_vectors(CATALOG, "tfidf", dim=5, seed=3)
    monkeypatch.setattr(text_encoder, "FITTED_TEXTS", len(TEXTS) - 2)  # as many as have text
    assert np.array_equal(item_vectors(CATALOG, "tfidf", dim=5, seed=3), every)
    monkeypatch.setattr(text_encoder, "FITTED_TEXTS", 9)
    some = item_vectors(CATALOG, "tfidf", dim=5, seed=3)
    assert np.array_equal(item_vectors(CATALOG, "tfidf", dim=5, seed=3), some)
    assert not np.array_equal(item_vectors(CATALOG, "tfidf", dim=5, seed=4), some)
    assert some[1:13].any(axis=1).all() and not some[[0, 13]].any()
