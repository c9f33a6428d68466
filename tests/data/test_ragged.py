"""Ragged arrays are the arrays that they were made from."""

import numpy as np

from recbole_idiomoe.data.ragged import RaggedArray

ARRAYS = [[3, 1], [], [4], [1, 5, 9]]


def test_each_is_a_view_of_one_array() -> None:
    ragged = RaggedArray.of(ARRAYS)
    assert [row.tolist() for row in ragged] == ARRAYS
    assert ragged.lengths.tolist() == [2, 0, 1, 3]
    assert ragged[-1].base is not None and ragged[3].tolist() == [1, 5, 9]
    assert [row.tolist() for row in ragged[1:]] == ARRAYS[1:]
    assert RaggedArray.of(ragged) is ragged
    assert ragged[3].dtype == np.int64


def test_they_may_overlap() -> None:
    ragged = RaggedArray(np.arange(5), np.array([0, 2]), np.array([4, 5]))
    assert [row.tolist() for row in ragged] == [[0, 1, 2, 3], [2, 3, 4]]


def test_there_may_be_none() -> None:
    assert len(RaggedArray.of([])) == 0
    assert not RaggedArray.of([])
