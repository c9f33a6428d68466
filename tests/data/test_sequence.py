import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_idiomoe.data.sequence import (
    ITEM,
    MIN_TEXT_TOKENS,
    TEXT,
    SequenceBuilder,
    _even_cap,
    collate,
)

OFFSET = 100
TEXTS = [[], [1, 2, 3], [4], []]  # rows 0 (padding) to 3; row 3 has no text


def builder(**kwargs: object) -> SequenceBuilder:
    return SequenceBuilder(TEXTS, OFFSET, instruction=[50, 51], **kwargs)  # type: ignore[arg-type]


def test_text_before_item() -> None:
    sequence = builder().build(np.array([1, 3, 2]))
    assert sequence.input_ids.tolist() == [50, 51, 1, 2, 3, 101, 103, 4, 102]
    assert sequence.token_types.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 1]
    # Every segment ends with its item token: the item expert predicts what comes next.
    assert sequence.segment_ends.tolist() == [5, 6, 8]
    assert sequence.segments.tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3]


def test_item_before_text() -> None:
    sequence = builder(item_first=True).build(np.array([1, 3, 2]))
    assert sequence.input_ids.tolist() == [50, 51, 101, 1, 2, 3, 103, 102, 4]
    assert sequence.segment_ends.tolist() == [5, 6, 8]
    assert sequence.segments.tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3]


def test_items_alone() -> None:
    sequence = builder().build(np.array([1, 2]), with_text=False)
    assert sequence.input_ids.tolist() == [50, 51, 101, 102]
    assert sequence.segment_ends.tolist() == [2, 3]


def test_texts_are_shortened_evenly_first() -> None:
    texts = [[], list(range(10)), list(range(20, 30)), [40]]
    sequence = SequenceBuilder(texts, OFFSET, max_tokens=3 + 13).build(np.array([1, 2, 3]))
    assert sequence.input_ids.tolist() == [*range(6), 101, *range(20, 26), 102, 40, 103]


def test_then_whole_texts_go_oldest_first() -> None:
    texts = [[], *([row * 10 + j for j in range(8)] for row in range(1, 4))]
    room = 2 * MIN_TEXT_TOKENS + 1
    sequence = SequenceBuilder(texts, OFFSET, max_tokens=3 + room).build(np.array([1, 2, 3]))
    assert sequence.input_ids.tolist() == [101, *range(20, 24), 102, *range(30, 34), 103]


def test_then_the_oldest_items_go() -> None:
    sequence = builder(max_tokens=4).build(np.array([1, 2, 3]))
    assert sequence.input_ids.tolist() == [50, 51, 102, 103]
    assert len(sequence.segment_ends) == 2


def test_one_item_always_fits() -> None:
    sequence = builder(max_tokens=1).build(np.array([1, 2]))
    assert sequence.input_ids.tolist() == [102]


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    max_tokens=st.integers(2, 120),
    item_first=st.booleans(),
    with_text=st.booleans(),
)
def test_a_sequence_never_exceeds_its_budget(
    lengths: list[int], max_tokens: int, item_first: bool, with_text: bool
) -> None:
    texts = [[], *([7] * length for length in lengths)]
    built = SequenceBuilder(
        texts, OFFSET, instruction=[1], item_first=item_first, max_tokens=max_tokens
    )
    items = np.arange(1, len(texts))
    sequence = built.build(items, with_text)
    assert len(sequence.input_ids) <= max_tokens
    assert len(sequence.input_ids) == built.length(items, with_text)
    kept = sequence.input_ids[sequence.token_types == ITEM] - OFFSET
    assert kept.tolist() == items[len(items) - len(kept) :].tolist()  # the most recent, in order
    assert len(kept) == min(len(items), built.max_items)
    assert (np.diff(sequence.segment_ends) > 0).all()
    assert sequence.segment_ends[-1] == len(sequence.input_ids) - 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 60))
def test_even_cap_is_the_largest_that_fits(lengths: list[int], room: int) -> None:
    cap = _even_cap(np.array(lengths), room)
    assert sum(min(length, cap) for length in lengths) <= room
    if cap < max(lengths):
        assert sum(min(length, cap + 1) for length in lengths) > room


def test_collate_for_training() -> None:
    b = builder()
    histories = [np.array([1, 3]), np.array([2])]
    targets = [np.array([3, 2]), np.array([1])]
    batch = collate([b.build(h) for h in histories], pad_token_id=9, targets=targets)
    assert batch.input_ids.tolist() == [[50, 51, 1, 2, 3, 101, 103], [50, 51, 4, 102, 9, 9, 9]]
    assert batch.token_types[1].tolist() == [TEXT, TEXT, TEXT, ITEM, TEXT, TEXT, TEXT]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1, 1, 2], [0, 0, 1, 1, 0, 0, 0]]
    assert batch.queries.tolist() == [5, 6, 7 + 3]
    assert batch.input_ids.flatten()[batch.queries].tolist() == [101, 103, 102]
    assert batch.targets.tolist() == [3, 2, 1]
    # Text is predicted from text alone, never across an item token or into padding.
    assert batch.text_queries.tolist() == [0, 1, 2, 3, 7, 8]


def test_collate_for_use_asks_once_a_sequence() -> None:
    b = builder()
    batch = collate([b.build(np.array([1, 3])), b.build(np.array([2]))], pad_token_id=9)
    assert batch.queries.tolist() == [6, 7 + 3]
    assert len(batch.targets) == 0


@pytest.mark.parametrize("item_first", [False, True])
def test_training_and_use_read_the_same_context(item_first: bool) -> None:
    b = builder(item_first=item_first)
    window = np.array([1, 2, 3])
    trained = b.build(window)
    for n, end in enumerate(trained.segment_ends, start=1):
        used = b.build(window[:n])
        assert used.input_ids.tolist() == trained.input_ids[: end + 1].tolist()
