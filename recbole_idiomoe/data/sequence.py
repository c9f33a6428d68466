"""A history of items as token ids and token types (paper, sections 3.1 and B.3).

    instruction  text_1 <|it-1|>  text_2 <|it-2|>  ...           order "text ID"
    instruction  <|it-1|> text_1  <|it-2|> text_2  ...           order "ID text"

The next item is predicted from the last token of the previous item's segment, in training
and in use alike; an item of several tokens, from there and from each of its own but the last.
A query in words, where there is one, stands behind the history, and the item that answers it
is predicted from its last token. What a token is, text or item, is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.ragged import Ragged

TEXT, ITEM = 0, 1
# Below this a shortened text says too little; whole texts are dropped instead, oldest first.
MIN_TEXT_TOKENS = 4
NOTHING = np.zeros(0, dtype=np.int64)


class TokenSequence(NamedTuple):
    """One history in tokens, and what is asked of it."""

    input_ids: np.ndarray
    """Token ids, shape ``(T,)``."""
    token_types: np.ndarray
    """``TEXT`` or ``ITEM`` of each token, shape ``(T,)``."""
    segments: np.ndarray
    """0 for instruction and query, else the number, from 1, of a token's item, shape ``(T,)``."""
    predict_at: np.ndarray
    """Positions from which items' tokens are predicted, shape ``(n,)``."""
    targets: np.ndarray
    """Tokens to predict there, shape ``(n,)``; empty in use, where nothing is known."""
    previous: np.ndarray
    """Rows of the items in front of the targets' items, shape ``(n,)``; 0 behind a query."""


class SequenceBuilder:
    """Turns histories of item rows into :class:`TokenSequence`.

    Args:
        item_texts: token ids of each item's text, one list per catalogue row.
        item_codes: token ids that stand for each item, at least one, per catalogue row. Where
            items have text in the sequence and ``item_first`` is not set, just one: the next
            item's text would stand before its other tokens.
        item_token_offset: every item token is at or above it, every text token below.
        instruction: token ids at the start of every sequence.
        item_first: ``ID text`` order; otherwise ``text ID``.
        max_tokens: longest sequence. At least one item and its successor always fit behind the
            instruction, which is cut if need be.

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
        self.item_first = item_first
        self.max_tokens = max_tokens
        self._texts, self._codes = Ragged.of(item_texts), Ragged.of(item_codes)
        self._text_lengths = self._texts.lengths
        self.code_lengths = self._codes.lengths
        longest = int(self.code_lengths.max())
        # Whichever item comes next, all its tokens but the last follow what predicts them.
        self._tail = longest - 1
        if max_tokens < longest + self._tail:
            raise SettingError(
                f"max_tokens={max_tokens} has no room for two items of up to {longest} tokens; "
                f"give at least {longest + self._tail}."
            )
        self._most_beside = max_tokens - self._tail - longest
        self.instruction = np.asarray(instruction, dtype=np.int64)[: self._most_beside]

    @property
    def room(self) -> int:
        """Tokens for a history's items, without text or a query."""
        return self.max_tokens - len(self.instruction) - self._tail

    def length(self, window: np.ndarray, with_text: bool = True) -> int:
        """Tokens that :meth:`build_training` would return without a query, not building them."""
        items, text_lengths = self._fit(window[:-1], with_text, self.room)
        kept = self.code_lengths[items].sum() + text_lengths.sum()
        return len(self.instruction) + int(kept + self.code_lengths[window[-1]]) - 1

    def lengths(self, windows: Ragged, with_text: bool = True) -> np.ndarray:
        """:meth:`length` of each of ``windows``, shape ``(windows,)``."""
        last = windows.values[windows.stops - 1]
        before_last = windows.starts, windows.stops - 1
        tokens = _sums(self.code_lengths[windows.values], *before_last)
        is_whole = tokens <= self.room
        if with_text:
            tokens = tokens + _sums(self._text_lengths[windows.values], *before_last)
            is_whole &= tokens <= self.room
        lengths = len(self.instruction) + tokens + self.code_lengths[last] - 1
        for i in np.flatnonzero(~is_whole).tolist():
            lengths[i] = self.length(windows[i], with_text)
        return lengths

    def build(
        self, items: np.ndarray, with_text: bool = True, query: np.ndarray = NOTHING
    ) -> TokenSequence:
        """Tokens of a history, item rows oldest first, shape ``(n,)``, and of a query.

        What exceeds ``max_tokens`` goes in this order (section B.3: text first, then items):
        texts are shortened evenly, then dropped oldest first, then the oldest items go. A query
        takes its tokens from them, then from the instruction; what one item leaves is its most.
        """
        return self.build_all([items], np.array([with_text]), [query])[0]

    def build_all(
        self,
        histories: Sequence[np.ndarray],
        with_text: np.ndarray,
        queries: Sequence[np.ndarray],
    ) -> list[TokenSequence]:
        """:meth:`build` of each history, at once: of single ones Python would take most of it."""
        joined = self._joined(histories, with_text, queries)
        return joined.cut(predict_at=joined.lengths - 1, each=np.ones_like(joined.lengths))

    def build_training(
        self, window: np.ndarray, with_text: bool = True, query: np.ndarray = NOTHING
    ) -> TokenSequence:
        """Tokens of a window's items but the last, with every item that follows another as target.

        Args:
            window: item rows, oldest first, at least two.
            query: token ids of what the last item answers.
        """
        return self.build_all_training([window], np.array([with_text]), [query])[0]

    def build_all_training(
        self,
        windows: Sequence[np.ndarray],
        with_text: np.ndarray,
        queries: Sequence[np.ndarray],
    ) -> list[TokenSequence]:
        """:meth:`build_training` of each window, at once."""
        following = np.array([window[-1] for window in windows])
        histories = [window[:-1] for window in windows]
        joined = self._joined(histories, with_text, queries, following)
        last = np.cumsum(joined.item_num) - 1  # of each sequence's items
        starts, previous = joined.ends, joined.items.copy()
        begun = self.code_lengths[following] - 1
        starts[last] = joined.lengths - begun - 1  # behind the query
        asked = np.array([len(query) > 0 for query in queries])
        previous[last[asked]] = 0  # it is the query that is answered, not the item
        targets = np.r_[joined.items[1:], 0]
        targets[last] = following
        lengths = self.code_lengths[targets]
        return joined.cut(
            predict_at=_places(starts, lengths),
            each=_sums_of(lengths, joined.item_num),
            targets=self._codes.values[_places(self._codes.starts[targets], lengths)],
            previous=np.repeat(previous, lengths),
        )

    def _joined(
        self,
        histories: Sequence[np.ndarray],
        with_text: np.ndarray,
        queries: Sequence[np.ndarray],
        following: np.ndarray | None = None,
    ) -> _Joined:
        """Sequences that ask nothing yet, one behind the other.

        Args:
            following: a further item of each, of whose tokens all but the last stand at the end.
        """
        query_lengths = np.minimum([len(query) for query in queries], self._most_beside)
        instruction_lengths = np.minimum(len(self.instruction), self._most_beside - query_lengths)
        room = self.max_tokens - instruction_lengths - query_lengths - self._tail
        items, text_lengths, item_num = self._fit_all(histories, with_text, room)

        # Of a sequence: the instruction, text and code of each item, the query, what is begun.
        piece_num = 2 * item_num + 3
        last = np.cumsum(piece_num) - 1
        first = last - piece_num + 1
        of_items = np.repeat(first + 1, item_num) + 2 * _within(item_num)
        texts, codes = of_items + self.item_first, of_items + (not self.item_first)
        source, start, length, number = np.zeros((4, piece_num.sum()), dtype=np.int64)
        length[first] = instruction_lengths
        source[texts], start[texts], length[texts] = 1, self._texts.starts[items], text_lengths
        source[codes], start[codes] = 2, self._codes.starts[items]
        length[codes] = self.code_lengths[items]
        number[texts] = number[codes] = _within(item_num) + 1
        source[last - 1], length[last - 1] = 3, query_lengths
        start[last - 1] = np.cumsum(query_lengths) - query_lengths
        if following is not None:
            source[last], start[last] = 2, self._codes.starts[following]
            length[last] = self.code_lengths[following] - 1
        number[last] = item_num + 1

        asked = [query[:most] for query, most in zip(queries, query_lengths, strict=True)]
        places = _places(start, length)
        sources = np.repeat(source, length)
        input_ids = np.empty(len(places), dtype=np.int64)
        kinds = self.instruction, self._texts.values, self._codes.values, np.concatenate(asked)
        for kind, values in enumerate(kinds):
            chosen = sources == kind
            input_ids[chosen] = values[places[chosen]]
        item_lengths = text_lengths + self.code_lengths[items]
        ends = np.repeat(instruction_lengths, item_num) - 1
        ends += _within(item_num, item_lengths) + item_lengths
        return _Joined(
            input_ids,
            token_types=np.where(input_ids >= self.item_token_offset, ITEM, TEXT),
            segments=np.repeat(number, length),
            lengths=_sums_of(length, piece_num),
            items=items,
            item_num=item_num,
            ends=ends,
        )

    def _fit_all(
        self, histories: Sequence[np.ndarray], with_text: np.ndarray, room: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:meth:`_fit` of each, joined, and how many items each keeps."""
        item_num = np.array([len(history) for history in histories])
        items = np.concatenate(histories)
        text_lengths = self._text_lengths[items] * np.repeat(with_text, item_num)
        too_long = _sums_of(self.code_lengths[items] + text_lengths, item_num) > room
        if not too_long.any():
            return items, text_lengths, item_num
        kept = list(zip(histories, np.split(text_lengths, np.cumsum(item_num)[:-1]), strict=True))
        for i in np.flatnonzero(too_long).tolist():
            kept[i] = self._fit(histories[i], bool(with_text[i]), int(room[i]))
        items, text_lengths = (np.concatenate(each) for each in zip(*kept, strict=True))
        return items, text_lengths, np.array([len(each) for each, _ in kept])

    def _fit(self, items: np.ndarray, with_text: bool, room: int) -> tuple[np.ndarray, np.ndarray]:
        """The items that stay in ``room`` tokens, and the tokens of each one's text."""
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


@dataclass(frozen=True)
class _Joined:
    """Several sequences, one behind the other, and the items that they keep, likewise."""

    input_ids: np.ndarray
    token_types: np.ndarray
    segments: np.ndarray
    lengths: np.ndarray
    """Tokens of each sequence."""
    items: np.ndarray
    item_num: np.ndarray
    """Items of each sequence."""
    ends: np.ndarray
    """Where in its sequence each item's segment ends."""

    def cut(
        self,
        predict_at: np.ndarray,
        each: np.ndarray,
        targets: np.ndarray = NOTHING,
        previous: np.ndarray = NOTHING,
    ) -> list[TokenSequence]:
        """The sequences by themselves; of what they ask, ``each`` says how much is whose."""
        asked = each if len(targets) else np.zeros_like(each)
        parts = [
            *(Ragged.joined(v, self.lengths) for v in (self.input_ids, self.token_types)),
            Ragged.joined(self.segments, self.lengths),
            Ragged.joined(predict_at, each),
            *(Ragged.joined(values, asked) for values in (targets, previous)),
        ]
        return [TokenSequence(*arrays) for arrays in zip(*parts, strict=True)]


def _within(lengths: np.ndarray, steps: np.ndarray | None = None) -> np.ndarray:
    """0, 1, 2, ... for each of these lengths; with ``steps``, what of them stands in front."""
    ones = np.ones(lengths.sum(), dtype=np.int64) if steps is None else steps
    before = np.cumsum(ones) - ones
    firsts = np.cumsum(lengths) - lengths
    found: np.ndarray = before - np.repeat(np.r_[before, 0][firsts], lengths)
    return found


def _places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """So many numbers from each of ``starts`` on."""
    found: np.ndarray = np.repeat(starts, lengths) + _within(lengths)
    return found


def _sums_of(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums of as many of ``values`` as each of ``lengths`` says, in their order."""
    stops = np.cumsum(lengths)
    return _sums(values, stops - lengths, stops)


def _sums(values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Sums of ``values`` from each of ``starts`` to before its one of ``stops``."""
    sums = np.r_[0, np.cumsum(values)]
    found: np.ndarray = sums[stops] - sums[starts]
    return found


def _even_cap(lengths: np.ndarray, room: int) -> int:
    """The largest cap with ``sum(min(lengths, cap)) <= room``."""
    ascending = np.sort(lengths)
    remaining = np.arange(len(ascending), 0, -1)
    # Up to which cap the k shortest texts stay whole while the others share what is left.
    shared = (room - np.r_[0, np.cumsum(ascending)[:-1]]) // remaining
    fits = np.flatnonzero(shared < ascending)
    return int(max(shared[fits[0]], 0)) if len(fits) else int(ascending[-1])
