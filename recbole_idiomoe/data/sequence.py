"""A history of items as token ids and token types (paper, sections 3.1 and B.3).

    instruction  text_1 <|it-1|>  text_2 <|it-2|>  ...           order "text ID"
    instruction  <|it-1|> text_1  <|it-2|> text_2  ...           order "ID text"

The next item is predicted from the last token of the previous item's segment, in training
and in use alike; an item of several tokens, from there and from each of its own but the last.
A query in words, where there is one, stands behind the history, and the item that answers it
is predicted from its last token. What a token is, text or item, is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from recbole_idiomoe.data.ragged import Ragged
from recbole_idiomoe.errors import SettingError

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
        tokens = _sums(self.code_lengths, windows)
        is_whole = tokens <= self.room
        if with_text:
            tokens = tokens + _sums(self._text_lengths, windows)
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
        sequence, _ = self._assemble(items, with_text, query, NOTHING)
        last = np.array([len(sequence.input_ids) - 1])
        return sequence._replace(predict_at=last)

    def build_training(
        self, window: np.ndarray, with_text: bool = True, query: np.ndarray = NOTHING
    ) -> TokenSequence:
        """Tokens of a window's items but the last, with every item that follows another as target.

        Args:
            window: item rows, oldest first, at least two.
            query: token ids of what the last item answers.
        """
        begun = self._codes[window[-1]][:-1]
        sequence, starts = self._assemble(window[:-1], with_text, query, begun)
        targets = window[len(window) - len(starts) :]
        starts[-1] = len(sequence.input_ids) - len(begun) - 1  # behind the query
        previous = window[len(window) - len(starts) - 1 : -1].copy()
        if len(query):
            previous[-1] = 0  # it is the query that is answered, not the item
        lengths = self.code_lengths[targets]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return sequence._replace(
            predict_at=np.repeat(starts, lengths) + within,
            targets=np.concatenate([self._codes[item] for item in targets]),
            previous=np.repeat(previous, lengths),
        )

    def _assemble(
        self, items: np.ndarray, with_text: bool, query: np.ndarray, begun: np.ndarray
    ) -> tuple[TokenSequence, np.ndarray]:
        """A sequence that asks nothing yet, and where each kept item's segment ends.

        Args:
            begun: tokens of a further item, behind the query.
        """
        query = query[: self._most_beside]
        instruction = self.instruction[: self._most_beside - len(query)]
        room = self.max_tokens - len(instruction) - len(query) - self._tail
        items, text_lengths = self._fit(items, with_text, room)
        pieces = [instruction]
        for item, length in zip(items, text_lengths, strict=True):
            text, code = self._texts[item][:length], self._codes[item]
            pieces += [code, text] if self.item_first else [text, code]
        input_ids = np.concatenate([*pieces, query, begun])
        lengths = text_lengths + self.code_lengths[items]
        numbers = np.r_[np.arange(len(items) + 1), 0, len(items) + 1]
        parts = np.r_[len(instruction), lengths, len(query), len(begun)]
        sequence = TokenSequence(
            input_ids,
            token_types=np.where(input_ids >= self.item_token_offset, ITEM, TEXT),
            segments=np.repeat(numbers, parts),
            predict_at=NOTHING,
            targets=NOTHING,
            previous=NOTHING,
        )
        return sequence, len(instruction) + np.cumsum(lengths) - 1

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


def _sums(of_item: np.ndarray, windows: Ragged) -> np.ndarray:
    """``of_item`` summed over the items of each window but the last."""
    sums = np.r_[0, np.cumsum(of_item[windows.values])]
    found: np.ndarray = sums[windows.stops - 1] - sums[windows.starts]
    return found


def _even_cap(lengths: np.ndarray, room: int) -> int:
    """The largest cap with ``sum(min(lengths, cap)) <= room``."""
    ascending = np.sort(lengths)
    remaining = np.arange(len(ascending), 0, -1)
    # Up to which cap the k shortest texts stay whole while the others share what is left.
    shared = (room - np.r_[0, np.cumsum(ascending)[:-1]]) // remaining
    fits = np.flatnonzero(shared < ascending)
    return int(max(shared[fits[0]], 0)) if len(fits) else int(ascending[-1])


@dataclass
class SequenceBatch:
    """Right-padded sequences and what is to be predicted from where.

    Plain causal attention needs no mask here: nothing real stands to the right of padding.
    """

    input_ids: torch.Tensor
    """``(B, T)``."""
    token_types: torch.Tensor
    """``(B, T)``; padding counts as text."""
    segments: torch.Tensor
    """``(B, T)``; padding counts as instruction."""
    lengths: torch.Tensor
    """``(B,)``, tokens of each sequence."""
    predict_at: torch.Tensor
    """``(N,)``, positions in the flattened batch from which items' tokens are predicted."""
    targets: torch.Tensor
    """``(N,)``, tokens to predict there; empty in use, where nothing is known."""
    previous: torch.Tensor
    """``(N,)``, rows of the items in front of the targets' items; 0 behind a query."""
    predict_text_at: torch.Tensor
    """``(M,)``, positions in the flattened batch of text that is followed by text; the instruction
    and queries are text too."""
    item_count: float
    """Targets of the optimizer step that this batch is a part of; ``N`` if it is the whole."""
    text_count: float
    """Predictions of text in that step."""
    token_count: float
    """Tokens of all sequences in that step."""
    item_tokens: int
    """Tokens of this batch whose type is ``ITEM``, known here without asking a GPU."""

    @property
    def is_real(self) -> torch.Tensor:
        """``(B, T)``, False for padding, which may stand there as a token that texts have too."""
        position = torch.arange(self.input_ids.shape[1], device=self.lengths.device)
        return position < self.lengths.unsqueeze(1)

    def to(self, device: torch.device | str) -> SequenceBatch:
        """The same batch on another device; from pinned memory the copy is not waited for."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> SequenceBatch:
        """The same batch in memory that a GPU copies from by itself; the loader's hook."""
        return self._with_each(torch.Tensor.pin_memory)

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SequenceBatch:
        changed: dict[str, Any] = {
            name: change(value)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)


def counts(sequences: Sequence[TokenSequence]) -> dict[str, Any]:
    """``item_count``, ``text_count`` and ``token_count`` of a step of ``sequences``."""
    is_text = [sequence.token_types == TEXT for sequence in sequences]
    return {
        "item_count": sum(len(sequence.targets) for sequence in sequences),
        "text_count": sum(int((text[:-1] & text[1:]).sum()) for text in is_text),
        "token_count": sum(len(sequence.input_ids) for sequence in sequences),
    }


def collate(sequences: Sequence[TokenSequence], pad_token_id: int) -> SequenceBatch:
    """Pad ``sequences``, at least one, on the right.

    Args:
        pad_token_id: any text token; what stands there changes nothing.
    """
    lengths = np.array([len(s.input_ids) for s in sequences])
    width = int(lengths.max())
    input_ids = np.full((len(sequences), width), pad_token_id, dtype=np.int64)
    token_types = np.full((len(sequences), width), TEXT, dtype=np.int64)
    segments = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : lengths[row]] = sequence.input_ids
        token_types[row, : lengths[row]] = sequence.token_types
        segments[row, : lengths[row]] = sequence.segments

    is_text = (token_types == TEXT) & (np.arange(width) < lengths[:, None])
    before_text = np.zeros_like(is_text)
    before_text[:, :-1] = is_text[:, :-1] & is_text[:, 1:]
    predict_text_at = np.flatnonzero(before_text)
    predict_at = np.concatenate([row * width + s.predict_at for row, s in enumerate(sequences)])
    targets = np.concatenate([s.targets for s in sequences])
    previous = np.concatenate([s.previous for s in sequences])
    return SequenceBatch(
        input_ids=torch.from_numpy(input_ids),
        token_types=torch.from_numpy(token_types),
        segments=torch.from_numpy(segments),
        lengths=torch.from_numpy(lengths),
        predict_at=torch.from_numpy(predict_at),
        targets=torch.from_numpy(targets),
        previous=torch.from_numpy(previous),
        predict_text_at=torch.from_numpy(predict_text_at),
        **counts(sequences),
        item_tokens=int((token_types == ITEM).sum()),
    )
