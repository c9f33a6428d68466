"""Nearest vectors by cosine, whole and in pieces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_idiomoe.analysis.neurons import References, nearest
from recbole_idiomoe.base.errors import SettingError


def of_rows(vectors: torch.Tensor) -> References:
    return References("items", torch.arange(len(vectors)), lambda ids: vectors[ids])


@given(st.integers(1, 400), st.integers(1, 12), st.integers(0, 99))
def test_pieces_give_what_the_whole_gives(at_once: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(37, 5, generator=generator)
    queries = torch.randn(7, 5, generator=generator)
    cosines, ids = nearest(queries, of_rows(vectors), k, at_once)
    whole = torch.cosine_similarity(queries[:, None], vectors[None], dim=2)
    wanted, wanted_ids = whole.topk(k, dim=1)
    torch.testing.assert_close(cosines, wanted)
    assert torch.equal(ids, wanted_ids)


def test_no_piece_is_larger_than_was_allowed() -> None:
    vectors, sizes = torch.randn(1000, 8), []

    def seen(ids: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        return vectors[ids]

    nearest(torch.randn(20, 8), References("items", torch.arange(1000), seen), 3, at_once=600)
    assert max(sizes) == 30 and sum(sizes) == 1000  # 30 cosines of each of the 20
    sizes.clear()
    nearest(torch.randn(1, 8), References("items", torch.arange(1000), seen), 3, at_once=600)
    assert max(sizes) == 75  # of 8 elements each


def test_only_the_ids_that_count_are_found_and_lengths_do_not() -> None:
    vectors = torch.tensor([[9.0, 0.0], [1.0, 0.1], [100.0, 90.0], [0.0, 0.0], [-1.0, 0.0]])
    counted = References("items", torch.tensor([1, 2, 3, 4]), lambda ids: vectors[ids])
    cosines, ids = nearest(torch.tensor([[0.001, 0.0]]), counted, 3)
    assert ids.tolist() == [[1, 2, 4]]  # not 0, which does not count, nor 3, which has no length
    assert cosines[0, 2] == -1
    with pytest.raises(SettingError, match="k=4 asks for more items than there are"):
        nearest(torch.ones(1, 2), counted, 4)
