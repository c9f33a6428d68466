import doctest
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data import sequence as sequences
from recbole_idiomoe.data.ragged import RaggedArray
from recbole_idiomoe.data.sequence import ITEM, MIN_TEXT_TOKENS, build_sequence
from recbole_idiomoe.data.sequence_builder import SequenceBuilder, _even_cap
from tests.helpers import sequence_of, training_sequence

OFFSET = 100
TEXTS = [[], [1, 2, 3], [4], []]  # rows 0 (padding) to 3; row 3 has no text
SPELT = [[100], [101, 102], [103, 104, 105], [106]]  # items of several tokens
NO_TEXT: list[list[int]] = [[]] * 4


def atomic(texts: list[list[int]], **kwargs: Any) -> SequenceBuilder:
    codes = [[OFFSET + row] for row in range(len(texts))]
    return SequenceBuilder(texts, codes, OFFSET, **kwargs)


def builder(**kwargs: Any) -> SequenceBuilder:
    return atomic(TEXTS, instruction=[50, 51], **kwargs)


def length(built: SequenceBuilder, window: np.ndarray, with_text: bool = True) -> int:
    return int(built.lengths(RaggedArray.of([window]), with_text)[0])


def test_text_before_item() -> None:
    sequence = sequence_of(builder(), np.array([1, 3, 2]))
    assert sequence.input_ids.tolist() == [50, 51, 1, 2, 3, 101, 103, 4, 102]
    assert sequence.token_types.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 1]
    # Every segment ends with its item token: the item expert predicts what comes next.
    assert sequence.predict_at.tolist() == [8] and len(sequence.targets) == 0
    assert sequence.segments.tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3]


def test_item_before_text() -> None:
    sequence = sequence_of(builder(item_first=True), np.array([1, 3, 2]))
    assert sequence.input_ids.tolist() == [50, 51, 101, 1, 2, 3, 103, 102, 4]
    assert sequence.predict_at.tolist() == [8] and len(sequence.targets) == 0
    assert sequence.segments.tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3]


def test_items_alone() -> None:
    sequence = sequence_of(builder(), np.array([1, 2]), with_text=False)
    assert sequence.input_ids.tolist() == [50, 51, 101, 102]
    assert sequence.predict_at.tolist() == [3]


def test_texts_are_shortened_evenly_first() -> None:
    texts = [[], list(range(10)), list(range(20, 30)), [40]]
    sequence = sequence_of(atomic(texts, max_tokens=3 + 13), np.array([1, 2, 3]))
    assert sequence.input_ids.tolist() == [*range(6), 101, *range(20, 26), 102, 40, 103]


def test_then_whole_texts_go_oldest_first() -> None:
    texts = [[], *([row * 10 + j for j in range(8)] for row in range(1, 4))]
    room = 2 * MIN_TEXT_TOKENS + 1
    sequence = sequence_of(atomic(texts, max_tokens=3 + room), np.array([1, 2, 3]))
    assert sequence.input_ids.tolist() == [101, *range(20, 24), 102, *range(30, 34), 103]


def test_then_the_oldest_items_go() -> None:
    sequence = sequence_of(builder(max_tokens=4), np.array([1, 2, 3]))
    assert sequence.input_ids.tolist() == [50, 51, 102, 103]
    assert sequence.segments.tolist() == [0, 0, 1, 2]


def test_one_item_always_fits() -> None:
    sequence = sequence_of(builder(max_tokens=1), np.array([1, 2]))
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
    built = atomic(texts, instruction=[1], item_first=item_first, max_tokens=max_tokens)
    items = np.arange(1, len(texts))
    sequence = sequence_of(built, items, with_text)
    assert len(sequence.input_ids) <= max_tokens
    # The last item of a window is its target alone; of one token, it takes no room.
    assert len(sequence.input_ids) == length(built, np.r_[items, 1], with_text)
    kept = sequence.input_ids[sequence.token_types == ITEM] - OFFSET
    assert kept.tolist() == items[len(items) - len(kept) :].tolist()  # the most recent, in order
    assert len(kept) == min(len(items), built.room)
    assert sequence.predict_at.tolist() == [len(sequence.input_ids) - 1]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 60))
def test_even_cap_is_the_largest_that_fits(lengths: list[int], room: int) -> None:
    cap = _even_cap(np.array(lengths), room)
    assert sum(min(length, cap) for length in lengths) <= room
    if cap < max(lengths):
        assert sum(min(length, cap + 1) for length in lengths) > room


def test_every_item_that_follows_another_is_a_target() -> None:
    sequence = training_sequence(builder(), np.array([1, 3, 2, 1]))
    assert sequence.input_ids.tolist() == [50, 51, 1, 2, 3, 101, 103, 4, 102]
    assert sequence.predict_at.tolist() == [5, 6, 8]
    assert sequence.targets.tolist() == [103, 102, 101]
    assert sequence.previous.tolist() == [1, 3, 2]
    sequence = training_sequence(builder(item_first=True), np.array([1, 3, 2]))
    assert sequence.input_ids.tolist() == [50, 51, 101, 1, 2, 3, 103]
    assert sequence.predict_at.tolist() == [5, 6]
    assert sequence.targets.tolist() == [103, 102]


def test_an_item_of_several_tokens_is_predicted_one_by_one() -> None:
    built = SequenceBuilder(NO_TEXT, SPELT, OFFSET, instruction=[50])
    sequence = training_sequence(built, np.array([1, 3, 2]))
    assert sequence.input_ids.tolist() == [50, 101, 102, 106, 103, 104]
    assert sequence.segments.tolist() == [0, 1, 1, 2, 3, 3]
    assert sequence.predict_at.tolist() == [2, 3, 4, 5]
    assert sequence.targets.tolist() == [106, 103, 104, 105]
    assert sequence.previous.tolist() == [1, 3, 3, 3]
    assert len(sequence.input_ids) == length(built, np.array([1, 3, 2]))


def test_an_items_tokens_stand_before_its_text_where_they_are_several() -> None:
    built = SequenceBuilder(TEXTS, SPELT, OFFSET, item_first=True)
    sequence = training_sequence(built, np.array([2, 1]))
    assert sequence.input_ids.tolist() == [103, 104, 105, 4, 101]
    assert sequence.token_types.tolist() == [1, 1, 1, 0, 1]
    assert sequence.predict_at.tolist() == [3, 4]
    assert sequence.targets.tolist() == [101, 102]


def test_a_query_stands_behind_the_history_and_the_last_item_answers_it() -> None:
    query = np.array([60, 61])
    used = sequence_of(builder(), np.array([1]), query=query)
    assert used.input_ids.tolist() == [50, 51, 1, 2, 3, 101, 60, 61]
    assert used.segments.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert used.predict_at.tolist() == [7]
    trained = training_sequence(builder(), np.array([2, 1, 3]), query=query)
    assert trained.input_ids.tolist() == [50, 51, 4, 102, 1, 2, 3, 101, 60, 61]
    assert trained.predict_at.tolist() == [3, 9]
    assert trained.targets.tolist() == [101, 103]
    assert trained.previous.tolist() == [2, 0]  # the query is answered
    spelt = training_sequence(
        SequenceBuilder(NO_TEXT, SPELT, OFFSET), np.array([3, 2]), query=query
    )
    assert spelt.input_ids.tolist() == [106, 60, 61, 103, 104]
    assert spelt.segments.tolist() == [1, 0, 0, 2, 2]
    assert spelt.predict_at.tolist() == [2, 3, 4]
    assert spelt.targets.tolist() == [103, 104, 105]


def test_a_query_needs_no_history_and_is_cut_where_it_is_too_long() -> None:
    empty = np.array([], dtype=np.int64)
    assert sequence_of(builder(), empty, query=np.array([60])).input_ids.tolist() == [50, 51, 60]
    sequence = sequence_of(builder(max_tokens=6), np.array([1, 2]), query=np.arange(60, 80))
    assert sequence.input_ids.tolist() == [102, 60, 61, 62, 63, 64]


def test_a_query_takes_its_tokens_from_the_instruction_last() -> None:
    query = np.arange(60, 63)
    sequence = sequence_of(builder(max_tokens=5), np.array([1]), query=query)
    assert sequence.input_ids.tolist() == [50, 101, 60, 61, 62]
    sequence = sequence_of(builder(max_tokens=3), np.array([1]), query=query)
    assert sequence.input_ids.tolist() == [101, 60, 61]


def test_too_little_room_for_items_of_many_tokens_is_one_line() -> None:
    with pytest.raises(SettingError, match=r"max_tokens=4 has no room .* give at least 5"):
        SequenceBuilder(NO_TEXT, SPELT, OFFSET, max_tokens=4)


@given(
    window=st.lists(st.integers(1, 3), min_size=2, max_size=30),
    query=st.integers(0, 20),
    max_tokens=st.integers(5, 60),
    item_first=st.booleans(),
)
def test_a_window_of_items_of_several_tokens_keeps_to_its_budget(
    window: list[int], query: int, max_tokens: int, item_first: bool
) -> None:
    texts = TEXTS if item_first else NO_TEXT
    built = SequenceBuilder(
        texts, SPELT, OFFSET, instruction=[1, 1], item_first=item_first, max_tokens=max_tokens
    )
    sequence = training_sequence(built, np.array(window), query=np.full(query, 60))
    assert len(sequence.input_ids) <= max_tokens
    assert len(sequence.predict_at) == len(sequence.targets)
    assert sequence.predict_at[-1] == len(sequence.input_ids) - 1
    spelt = [token for item in window for token in SPELT[item]]
    assert sequence.targets.tolist() == spelt[len(spelt) - len(sequence.targets) :]
    before = [0 if query and n == len(window) - 2 else item for n, item in enumerate(window[:-1])]
    before = [i for i, item in zip(before, window[1:], strict=True) for _ in SPELT[item]]
    assert sequence.previous.tolist() == before[len(before) - len(sequence.targets) :]
    # In use the next item's tokens, but the last, follow what is read: they have room too.
    used = sequence_of(built, np.array(window), query=np.full(query, 60))
    assert len(used.input_ids) + 2 <= max_tokens
    if not query:
        # What is predicted inside a sequence stands right behind where it is predicted from.
        within = sequence.predict_at[sequence.predict_at < len(sequence.input_ids) - 1]
        assert (sequence.input_ids[within + 1] == sequence.targets[: len(within)]).all()
        fits = window[-built.room // 3 - 1 :]  # three tokens are the most
        whole = training_sequence(built, np.array(fits))
        assert len(whole.targets) == sum(len(SPELT[item]) for item in fits[1:])
        assert len(whole.input_ids) == length(built, np.array(fits))


def test_the_example_of_the_reference_is_right() -> None:
    results = doctest.testmod(sequences)
    assert results.attempted > 0 and results.failed == 0


@st.composite
def catalogues(draw: st.DrawFn) -> dict[str, Any]:
    """Texts and tokens of a few items, an order that they allow, an instruction and a limit."""
    item_num = draw(st.integers(2, 6))
    item_first, is_spelt_in_text = draw(st.booleans()), draw(st.booleans())
    has_text = draw(st.booleans())
    several = item_first or not has_text
    token = st.integers(0, 99) if is_spelt_in_text else st.integers(OFFSET, 120)
    code = st.lists(token, min_size=1, max_size=3 if several else 1)
    text = st.lists(st.integers(0, 49), max_size=12 if has_text else 0)
    codes = draw(st.lists(code, min_size=item_num, max_size=item_num))
    longest = max(map(len, codes))
    return {
        "item_texts": draw(st.lists(text, min_size=item_num, max_size=item_num)),
        "item_codes": codes,
        "item_token_offset": OFFSET,
        "instruction": draw(st.lists(st.integers(50, 59), max_size=5)),
        "item_first": item_first,
        "max_tokens": draw(st.integers(2 * longest - 1, 50)),
    }


@given(st.data())
def test_the_builder_equals_the_reference(data: st.DataObject) -> None:
    options = data.draw(catalogues())
    built = SequenceBuilder(**options)
    item_num = len(options["item_texts"])
    rows = st.lists(st.integers(0, item_num - 1), min_size=1, max_size=10)
    query = st.lists(st.integers(60, 69), max_size=8)
    asked = data.draw(st.lists(st.tuples(rows, st.booleans(), query), min_size=1, max_size=5))
    histories = [np.array(history) for history, _, _ in asked]
    with_text = np.array([text for _, text, _ in asked])
    queries = [np.array(query, dtype=np.int64) for _, _, query in asked]
    followers = data.draw(st.lists(st.integers(0, item_num - 1), min_size=5, max_size=5))
    windows = [np.r_[history, item] for history, item in zip(histories, followers, strict=False)]
    used = built.build(histories, with_text, queries)
    trained = built.build_training(windows, with_text, queries)
    for i, (history, has_text, query) in enumerate(asked):
        own = options if has_text else options | {"item_texts": [[]] * item_num}
        for sequence, next_item in ((used[i], None), (trained[i], followers[i])):
            wanted = build_sequence(history, **own, next_item=next_item, query=query)
            for name, array in sequence._asdict().items():
                assert array.tolist() == getattr(wanted, name).tolist(), name
                assert array.dtype == np.int64, name


@given(st.lists(st.integers(60, 69), max_size=8), catalogues())
def test_an_empty_history_equals_the_reference(query: list[int], options: dict[str, Any]) -> None:
    sequence = sequence_of(
        SequenceBuilder(**options), np.array([], dtype=np.int64), query=np.array(query)
    )
    for array, wanted in zip(sequence, build_sequence([], **options, query=query), strict=True):
        assert array.tolist() == wanted.tolist()


WINDOWS = st.lists(st.integers(1, 5), min_size=2, max_size=9).map(np.array)
QUERIES = st.lists(st.integers(0, 49), max_size=4).map(lambda ids: np.array(ids, dtype=np.int64))


@given(
    asked=st.lists(st.tuples(WINDOWS, st.booleans(), QUERIES), min_size=1, max_size=6),
    item_first=st.booleans(),
    max_tokens=st.integers(8, 40),
)
def test_many_at_once_are_as_each_by_itself(
    asked: list[tuple[np.ndarray, bool, np.ndarray]], item_first: bool, max_tokens: int
) -> None:
    texts = [[], [1, 2, 3], [4], [], [5] * 7, [6, 7]]
    codes = [[100], [101, 102], [103], [104, 105, 106], [107], [108, 109]]
    if not item_first:
        codes = [[code[0]] for code in codes]
    options: dict[str, Any] = {"item_first": item_first, "max_tokens": max_tokens}
    made = SequenceBuilder(texts, codes, OFFSET, instruction=[50, 51], **options)
    windows, with_text, queries = zip(*asked, strict=True)
    for all_at_once, each in (
        (made.build, partial(sequence_of, made)),
        (made.build_training, partial(training_sequence, made)),
    ):
        together = all_at_once(windows, np.array(with_text), queries)
        for sequence, alone in zip(together, map(each, *zip(*asked, strict=True)), strict=True):
            for array, wanted in zip(sequence, alone, strict=True):
                np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("item_first", [False, True])
def test_training_and_use_read_the_same_context(item_first: bool) -> None:
    b = builder(item_first=item_first)
    window = np.array([1, 2, 3, 1])
    trained = training_sequence(b, window)
    for n, at in enumerate(trained.predict_at, start=1):
        used = sequence_of(b, window[:n])
        assert used.input_ids.tolist() == trained.input_ids[: at + 1].tolist()


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=12), min_size=1, max_size=8),
    st.integers(5, 40),
    st.booleans(),
)
def test_lengths_of_many_windows_are_those_of_each(
    windows: list[list[int]], max_tokens: int, with_text: bool
) -> None:
    for codes in (SPELT, [[OFFSET + row] for row in range(4)]):
        b = SequenceBuilder(TEXTS, codes, OFFSET, instruction=[50], max_tokens=max_tokens)
        built = [training_sequence(b, np.array(window), with_text) for window in windows]
        each = [len(sequence.input_ids) for sequence in built]
        assert b.lengths(RaggedArray.of(windows), with_text).tolist() == each
