"""A user's history as a sequence of tokens (paper, sections 3.1 and B.3).

    instruction  text_1 <|it-1|>  text_2 <|it-2|>  ...  query        order "text ID"
    instruction  <|it-1|> text_1  <|it-2|> text_2  ...  query        order "ID text"

The text and the tokens of one item are its segment. An item is predicted from the last token in
front of its segment, in training and at inference; if it has several tokens, each later one is
predicted from the one before it. A query in words may end the history; the item that answers the
query is predicted from the last token of the query.

:func:`build_sequence` builds one sequence with a plain loop. The vectorised
:class:`~recbole_idiomoe.data.sequence_builder.SequenceBuilder` builds the same sequences faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TEXT, ITEM = 0, 1
# A text cut shorter than this says too little: from there on, the oldest texts are dropped.
MIN_TEXT_TOKENS = 4
NOTHING = np.zeros(0, dtype=np.int64)


class TokenSequence(NamedTuple):
    """One history in tokens, and what is predicted from it. All arrays are int64."""

    input_ids: np.ndarray
    """Token ids, shape ``(T,)``."""
    token_types: np.ndarray
    """``TEXT`` or ``ITEM`` of each token, shape ``(T,)``."""
    segments: np.ndarray
    """Number, from 1, of each token's item; 0 for instruction and query, shape ``(T,)``."""
    predict_at: np.ndarray
    """Positions from which item tokens are predicted, shape ``(n,)``."""
    targets: np.ndarray
    """Tokens to predict at these positions, shape ``(n,)``; empty at inference, shape ``(0,)``."""
    previous: np.ndarray
    """Row of the item before each target's item, 0 after a query, shape as ``targets``."""


def build_sequence(
    history: Sequence[int],
    item_texts: Sequence[Sequence[int]],
    item_codes: Sequence[Sequence[int]],
    item_token_offset: int,
    *,
    next_item: int | None = None,
    query: Sequence[int] = (),
    instruction: Sequence[int] = (),
    item_first: bool = False,
    max_tokens: int = 1024,
) -> TokenSequence:
    """Build the sequence of one history: the reference of ``SequenceBuilder``.

    In this example, item 1 has a text of two tokens, item 2 has none, and item 3 comes next. Items
    2 and 3 are predicted, each from the last token in front of its segment:

    >>> texts = [[], [11, 12], [], [13]]  # row 0 is the padding item
    >>> codes = [[100], [101], [102], [103]]
    >>> sequence = build_sequence([1, 2], texts, codes, 100, next_item=3, instruction=[50])
    >>> for name, array in sequence._asdict().items():
    ...     print(f"{name:11}", *(f"{value:3}" for value in array))
    input_ids    50  11  12 101 102
    token_types   0   0   0   1   1
    segments      0   1   1   1   2
    predict_at    3   4
    targets     102 103
    previous      1   2

    Args:
        history: item rows, oldest first.
        next_item: the row of the item after the history, in training; None at inference.
        query: token ids of a query in words that ``next_item`` answers.

    The other arguments, and what is cut to keep to ``max_tokens``, are ``SequenceBuilder``'s.
    """
    longest = max(len(code) for code in item_codes)
    # Any item may come next: its tokens but the last are read too, and need room at the end.
    room = max_tokens - (longest - 1)
    shown_query = query[: room - longest]
    shown_instruction = instruction[: room - longest - len(shown_query)]
    room -= len(shown_query) + len(shown_instruction)
    items = _newest(history, item_codes, room)
    room -= sum(len(item_codes[item]) for item in items)
    texts = _shortened([item_texts[item] for item in items], room)

    tokens, segments = list(shown_instruction), [0] * len(shown_instruction)
    predict_at: list[int] = []
    targets: list[int] = []
    previous: list[int] = []

    def predict(item: int, item_before: int) -> None:
        code = item_codes[item]
        predict_at.extend(range(len(tokens) - 1, len(tokens) - 1 + len(code)))
        targets.extend(code)
        previous.extend([item_before] * len(code))

    for number, (item, text) in enumerate(zip(items, texts, strict=True), start=1):
        if next_item is not None and number > 1:
            predict(item, items[number - 2])
        code = item_codes[item]
        segment = [*code, *text] if item_first else [*text, *code]
        tokens += segment
        segments += [number] * len(segment)
    tokens += shown_query
    segments += [0] * len(shown_query)
    if next_item is None:
        predict_at.append(len(tokens) - 1)
    else:
        predict(next_item, 0 if len(query) else items[-1])
        begun = item_codes[next_item][:-1]
        tokens += begun
        segments += [len(items) + 1] * len(begun)
    types = [ITEM if token >= item_token_offset else TEXT for token in tokens]
    columns = tokens, types, segments, predict_at, targets, previous
    return TokenSequence(*(np.array(column, dtype=np.int64) for column in columns))


def _newest(history: Sequence[int], item_codes: Sequence[Sequence[int]], room: int) -> list[int]:
    """The most recent items of ``history`` whose codes fit in ``room`` tokens, oldest first."""
    kept: list[int] = []
    for item in reversed(history):
        room -= len(item_codes[item])
        if room < 0:
            break
        kept.insert(0, item)
    return kept


def _shortened(texts: Sequence[Sequence[int]], room: int) -> list[Sequence[int]]:
    """``texts``, oldest first, cut to ``room`` tokens: evenly at first, then the oldest to none."""
    cap = max(map(len, texts), default=0)
    while cap > MIN_TEXT_TOKENS and sum(min(len(text), cap) for text in texts) > room:
        cap -= 1
    kept: list[Sequence[int]] = []
    for text in reversed(texts):
        room -= min(len(text), cap)
        kept.insert(0, text[:cap] if room >= 0 else [])
    return kept
