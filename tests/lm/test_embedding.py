from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.lm import ItemTable
from recbole_idiomoe.lm.embedding import text_directions

INNER = pytest.mark.parametrize("inner", [None, 5])


def table(inner, items=50, hidden=16, std=0.02):
    torch.manual_seed(0)
    return ItemTable(items, hidden, inner, std)


@INNER
def test_lookup_and_scores_are_those_of_the_full_matrix(inner):
    items = table(inner)
    full = items.weight()
    assert full.shape == (50, 16)
    ids = torch.tensor([[1, 49], [7, 0]])
    torch.testing.assert_close(items(ids), full[ids])
    hidden = torch.randn(2, 3, 16)
    scores = items.logits(hidden)
    torch.testing.assert_close(scores[..., 1:], (hidden @ full.T)[..., 1:])
    assert (scores[..., 0] == -torch.inf).all()


@INNER
def test_scores_stay_float32_under_autocast(inner):
    items = table(inner)
    hidden = torch.randn(4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = items.logits(hidden)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, items.logits(hidden))
    assert items.to(torch.bfloat16).logits(hidden.bfloat16()).dtype == torch.float32


@INNER
def test_starts_at_the_given_spread_and_never_trains_the_padding_row(inner):
    items = table(inner, items=4000, std=0.03)
    assert items.weight()[1:].std().item() == pytest.approx(0.03, rel=0.05)
    assert not items.rows[0].any()
    loss = F.cross_entropy(items.logits(torch.randn(3, 16)), torch.tensor([1, 2, 3]))
    (loss + items(torch.tensor([0, 1])).sum()).backward()
    assert torch.isfinite(items.rows.grad).all()
    assert not items.rows.grad[0].any() and items.rows.grad[1:].any()


@INNER
@pytest.mark.parametrize("size", [3, 5, 16])
def test_vectors_that_fit_keep_their_cosines(inner, size):
    vectors = np.random.default_rng(0).normal(size=(50, size)).astype(np.float32) + 1
    # Five dimensions hold vectors of sixteen only if these span no more than five.
    if inner is not None and size > inner:
        vectors = vectors[:, :inner] @ np.random.default_rng(1).normal(size=(inner, size))
    items = table(inner)
    items.load_vectors(vectors, seed=3)
    given = torch.as_tensor(vectors).float()[1:]
    wanted = F.normalize(given - given.mean(0), dim=1)
    got = F.normalize(items.weight()[1:], dim=1)
    torch.testing.assert_close(got @ got.T, wanted @ wanted.T, atol=2e-4, rtol=0)
    assert items.weight()[1:].std(correction=0).item() == pytest.approx(0.02, rel=1e-4)
    assert not items.rows[0].any()
    if items.up is not None:
        torch.testing.assert_close(items.up @ items.up.T, torch.eye(5))


def test_wider_vectors_are_projected_as_well_as_can_be():
    """The inner products that rank 5 can keep: those of the truncated SVD."""
    vectors = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    items = table(5)
    items.load_vectors(vectors)
    centred = F.normalize(vectors[1:] - vectors[1:].mean(0), dim=1)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    best = (u[:, :5] * s[:5]) @ (u[:, :5] * s[:5]).T
    got = items.weight()[1:] @ items.weight()[1:].T
    torch.testing.assert_close(got / got.trace(), best / best.trace(), atol=1e-5, rtol=0)


def test_loading_is_seeded_and_leaves_the_global_generator_alone():
    vectors = torch.randn(50, 3)
    first, second, third = table(None), table(None), table(None)
    state = torch.get_rng_state()
    first.load_vectors(vectors, seed=1)
    second.load_vectors(vectors, seed=1)
    third.load_vectors(vectors, seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.rows, second.rows) and not torch.equal(first.rows, third.rows)


def test_items_without_text_get_short_distinct_vectors():
    vectors = torch.randn(50, 16)
    vectors[[4, 9]] = 0
    items = table(None)
    items.load_vectors(vectors)
    lengths = items.weight().norm(dim=1)
    assert (lengths[[4, 9]] > 0).all() and (lengths[[4, 9]] < lengths[1] / 5).all()
    assert not torch.equal(items.rows[4], items.rows[9])
    # They count for nothing in the mean either.
    without = torch.cat((vectors[:4], vectors[5:9], vectors[10:]))
    smaller = table(None, items=48)
    smaller.load_vectors(without)
    cosines = F.cosine_similarity(items.weight()[1], items.weight()[2], dim=0)
    expected = F.cosine_similarity(smaller.weight()[1], smaller.weight()[2], dim=0)
    torch.testing.assert_close(cosines, expected)


@pytest.mark.parametrize(
    "vectors", [np.zeros((50, 7)), np.ones((50, 7)), np.ones((50, 16))], ids=str
)
def test_vectors_that_say_nothing_still_give_a_table(vectors):
    items = table(None)
    items.load_vectors(vectors)
    assert torch.isfinite(items.rows).all()
    assert len(items.rows[1:].unique(dim=0)) == 49


@pytest.mark.parametrize("vectors", [np.ones((49, 4)), np.ones(50), np.full((50, 4), np.nan)])
def test_vectors_that_do_not_fit_are_refused(vectors):
    with pytest.raises(DataError, match="item vectors"):
        table(None).load_vectors(vectors)


@INNER
def test_a_grown_table_keeps_its_items_and_places_others(inner):
    items = table(inner)
    items.rows.requires_grad_(False)
    before, hidden = items.weight(), torch.randn(3, 16)
    items.grow(53)
    assert items.item_num == 53 and not items.rows.requires_grad
    assert torch.equal(items.weight()[:50], before) and not items.weight()[50:].any()
    rows = torch.randn(2, items.rows.shape[1])
    items.place(torch.tensor([50, 52]), rows, torch.zeros(2, 7))
    assert torch.equal(items.rows[[50, 52]], rows) and not items.rows[51].any()
    assert torch.equal(items.weight()[:50], before)
    torch.testing.assert_close(items.logits(hidden)[:, 1:], hidden @ items.weight()[1:].T)


def test_directions_are_seen_from_the_mean_of_what_was_trained_on():
    vectors = torch.randn(50, 6) + 1
    vectors[7] = 0
    vectors[[3, 9]] += 50
    found = text_directions(vectors, 50, untrained=[3, 9])
    trained = [row for row in range(1, 50) if row not in (3, 7, 9)]
    mean = vectors[trained].mean(0)
    for row in (1, 3, 9):
        torch.testing.assert_close(found[row], F.normalize(vectors[row] - mean, dim=0))
    assert not found[[0, 7]].any()
    vectors[[3, 9]] = 0
    assert torch.equal(text_directions(vectors, 50)[trained], found[trained])
