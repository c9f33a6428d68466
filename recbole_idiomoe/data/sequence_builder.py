"""Vectorised construction of many token sequences at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.ragged import RaggedArray
from recbole_idiomoe.data.sequence import ITEM, MIN_TEXT_TOKENS, NOTHING, TEXT, TokenSequence


class SequenceBuilder:
    """Turns histories of item rows into token sequences (paper, section B.3).

    :func:`~recbole_idiomoe.data.sequence.build_sequence` builds the same sequences. If one is
    too long, it loses tokens in this order (section B.3: text first, then items): texts are
    shortened evenly, down to ``MIN_TEXT_TOKENS``; the oldest texts are dropped; the oldest items
    are dropped; the instruction is cut; the query is cut. One item of the history always stays.

    Args:
        item_texts: token ids of each item's text, one list per catalogue row.
        item_codes: token ids that stand for each item, at least one, per catalogue row. Exactly
            one if items have text and ``item_first`` is False, because an item is predicted from
            the token in front of its text, and its other tokens could not follow.
        item_token_offset: every item token is at or above it, every text token below it.
        instruction: token ids at the start of every sequence.
        item_first: True for the order ``ID text``, False for ``text ID``.
        max_tokens: most tokens of a sequence, the next item's tokens but the last included.

    Attributes:
        code_lengths: number of tokens of each item, shape ``(item_num,)``.

    Raises:
        SettingError: ``max_tokens`` has no room for two items.
    """

    def __init__(
        self,
        item_texts: Sequence[Sequence[int] | np.ndarray],
        item_codes: Sequence[Sequence[int] | np.ndarray],
        item_token_offset: int,
        *,
        instruction: Sequence[int] = (),
        item_first: bool = False,
        max_tokens: int = 1024,
    ) -> None:
        self.item_token_offset = item_token_offset
        self.item_first, self.max_tokens = item_first, max_tokens
        self._texts, self._codes = RaggedArray.of(item_texts), RaggedArray.of(item_codes)
        self._text_lengths, self.code_lengths = self._texts.lengths, self._codes.lengths
        longest = int(self.code_lengths.max())
        # Any item may come next: its tokens but the last are read too, and need room at the end.
        self._tail = longest - 1
        if max_tokens < longest + self._tail:
            raise SettingError(
                f"max_tokens={max_tokens} has no room for two items of up to {longest} tokens; "
                f"give at least {longest + self._tail}."
            )
        self._prompt_room = max_tokens - self._tail - longest
        self.instruction = np.asarray(instruction, dtype=np.int64)[: self._prompt_room]

    @property
    def room(self) -> int:
        """Most tokens of a history's segments in a sequence without a query."""
        return self.max_tokens - len(self.instruction) - self._tail

    def lengths(self, windows: RaggedArray, with_text: bool = True) -> np.ndarray:
        """Number of tokens that :meth:`build_training` gives each window without a query.

        They are computed without building the sequences; the shape is ``(windows,)``.
        """
        histories, following = _split_last(windows)
        has_text, room = np.full(len(windows), with_text), np.full(len(windows), self.room)
        items, text_lengths, item_num = self._fit_all(histories, has_text, room)
        tokens = _group_sums(self.code_lengths[items] + text_lengths, item_num)
        return len(self.instruction) + tokens + self.code_lengths[following] - 1

    def build(
        self, histories: Sequence[np.ndarray], with_text: np.ndarray, queries: Sequence[np.ndarray]
    ) -> list[TokenSequence]:
        """Build the sequences from which the items after histories are predicted.

        Args:
            histories: item rows, oldest first, each of shape ``(n,)``.
            with_text: whether items have their text in a sequence, bool, shape ``(histories,)``.
            queries: for each history, the token ids of a query at the end, which may be empty.
        """
        return self._build(RaggedArray.of(histories), with_text, queries)

    def build_training(
        self, windows: Sequence[np.ndarray], with_text: np.ndarray, queries: Sequence[np.ndarray]
    ) -> list[TokenSequence]:
        """Build training sequences, with all items of a window but the first as targets.

        The last item is not part of the sequence, and answers the query. A window has at least
        two items. The other arguments are described in :meth:`build`.
        """
        histories, following = _split_last(RaggedArray.of(windows))
        return self._build(histories, with_text, queries, following)

    def _build(
        self,
        histories: RaggedArray,
        with_text: np.ndarray,
        queries: Sequence[np.ndarray],
        following: np.ndarray | None = None,
    ) -> list[TokenSequence]:
        """Build sequences; in training, ``following`` has the item after each history."""
        asked = np.array([len(query) for query in queries])
        query_lengths = np.minimum(asked, self._prompt_room)
        instruction_lengths = np.minimum(len(self.instruction), self._prompt_room - query_lengths)
        room = self.max_tokens - instruction_lengths - query_lengths - self._tail
        items, text_lengths, item_num = self._fit_all(histories, with_text, room)

        # The pieces of a sequence: the instruction, each item's text and code in their order, the
        # query, and the next item's tokens but the last. A piece is a range of one source array.
        piece_num = 2 * item_num + 3
        last = np.cumsum(piece_num) - 1
        first = last - piece_num + 1
        position = _offsets(item_num)  # of an item in its sequence
        pairs = np.repeat(first + 1, item_num) + 2 * position
        texts, codes = pairs + self.item_first, pairs + (not self.item_first)
        source, start, length, number = np.zeros((4, piece_num.sum()), dtype=np.int64)
        length[first] = instruction_lengths
        source[texts], start[texts], length[texts] = 1, self._texts.starts[items], text_lengths
        source[codes], start[codes] = 2, self._codes.starts[items]
        length[codes] = self.code_lengths[items]
        number[texts] = number[codes] = position + 1
        source[last - 1], length[last - 1] = 3, query_lengths
        start[last - 1] = np.cumsum(query_lengths) - query_lengths
        if following is not None:
            source[last], start[last] = 2, self._codes.starts[following]
            length[last] = self.code_lengths[following] - 1
        number[last] = item_num + 1

        shown = [query[:most] for query, most in zip(queries, query_lengths, strict=True)]
        places = _ranges(start, length)
        sources = np.repeat(source, length)
        input_ids = np.empty(len(places), dtype=np.int64)
        arrays = self.instruction, self._texts.values, self._codes.values, np.concatenate(shown)
        for index, values in enumerate(arrays):
            chosen = sources == index
            input_ids[chosen] = values[places[chosen]]
        ends = np.cumsum(length) - 1  # the last token of each piece
        lengths = np.diff(ends[last], prepend=-1)
        ends -= np.repeat(ends[last] - lengths + 1, piece_num)  # counted in its own sequence

        if following is None:
            predict_at, predict_num = ends[last], np.ones_like(lengths)
            target_ids, previous, target_num = NOTHING, NOTHING, np.zeros_like(lengths)
        else:
            newest = np.cumsum(item_num) - 1  # index of each sequence's last item
            starts, targets, previous = ends[pairs + 1], np.r_[items[1:], 0], items.copy()
            starts[newest], targets[newest] = ends[last - 1], following
            previous[newest[asked > 0]] = 0  # the target answers the query, not the item before it
            code_lengths = self.code_lengths[targets]
            predict_num = target_num = _group_sums(code_lengths, item_num)
            predict_at = _ranges(starts, code_lengths)
            target_ids = self._codes.values[_ranges(self._codes.starts[targets], code_lengths)]
            previous = np.repeat(previous, code_lengths)
        token_types = np.where(input_ids >= self.item_token_offset, ITEM, TEXT)
        segments = np.repeat(number, length)
        columns = input_ids, token_types, segments, predict_at, target_ids, previous
        sizes = lengths, lengths, lengths, predict_num, target_num, target_num
        parts = map(RaggedArray.from_lengths, columns, sizes)
        return [TokenSequence(*arrays) for arrays in zip(*parts, strict=True)]

    def _fit_all(
        self, histories: RaggedArray, with_text: np.ndarray, room: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The concatenated results of :meth:`_fit` for each history, and the numbers of items."""
        item_num = histories.lengths
        items = histories.values[_ranges(histories.starts, item_num)]
        text_lengths = self._text_lengths[items] * np.repeat(with_text, item_num)
        too_long = _group_sums(self.code_lengths[items] + text_lengths, item_num) > room
        if not too_long.any():
            return items, text_lengths, item_num
        kept = list(zip(histories, np.split(text_lengths, np.cumsum(item_num)[:-1]), strict=True))
        for i in np.flatnonzero(too_long).tolist():
            kept[i] = self._fit(histories[i], bool(with_text[i]), int(room[i]))
        items, text_lengths = (np.concatenate(each) for each in zip(*kept, strict=True))
        return items, text_lengths, np.array([len(each) for each, _ in kept])

    def _fit(self, items: np.ndarray, with_text: bool, room: int) -> tuple[np.ndarray, np.ndarray]:
        """The newest items that fit in ``room`` tokens, and how much text of each fits too."""
        newest_first = np.cumsum(self.code_lengths[items][::-1])[::-1]
        items = items[newest_first <= room]
        if not with_text:
            return items, np.zeros(len(items), dtype=np.int64)
        room -= int(self.code_lengths[items].sum())
        lengths = self._text_lengths[items]
        if lengths.sum() <= room:
            return items, lengths
        lengths = np.minimum(lengths, max(_even_cap(lengths, room), MIN_TEXT_TOKENS))
        newest_first = np.cumsum(lengths[::-1])[::-1]
        return items, np.where(newest_first <= room, lengths, 0)


def _split_last(windows: RaggedArray) -> tuple[RaggedArray, np.ndarray]:
    """The windows without their last items, and these items."""
    histories = RaggedArray(windows.values, windows.starts, windows.stops - 1)
    return histories, windows.values[windows.stops - 1]


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """The numbers 0, 1, ..., length - 1 of each group, concatenated."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The ranges ``start, start + 1, ..., start + length - 1``, concatenated."""
    return np.repeat(starts, lengths) + _offsets(lengths)


def _group_sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The sum of each group of consecutive ``values``; ``lengths`` are the sizes of the groups."""
    return np.diff(np.r_[0, np.cumsum(values)][np.r_[0, np.cumsum(lengths)]])


def _even_cap(lengths: np.ndarray, room: int) -> int:
    """The largest cap with ``sum(minimum(lengths, cap)) <= room``, at most the largest length."""
    ascending = np.sort(lengths)
    remaining = np.arange(len(ascending), 0, -1)
    # The cap at which the k shortest texts stay whole and the others share the rest evenly.
    shared = (room - np.r_[0, np.cumsum(ascending)[:-1]]) // remaining
    fits = np.flatnonzero(shared < ascending)
    return int(max(shared[fits[0]], 0)) if len(fits) else int(ascending[-1])
