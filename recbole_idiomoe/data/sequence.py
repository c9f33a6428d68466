"""A history of items as token ids and token types (paper, sections 3.1 and B.3).

    instruction  text_1 <|it-1|>  text_2 <|it-2|>  ...           order "text ID"
    instruction  <|it-1|> text_1  <|it-2|> text_2  ...           order "ID text"

The next item is predicted from the last token of the previous item's segment, in training
and in use alike. What a token is, text or item, is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

TEXT, ITEM = 0, 1
# Below this a shortened text says too little; whole texts are dropped instead, oldest first.
MIN_TEXT_TOKENS = 4


class TokenSequence(NamedTuple):
    """One history in tokens."""

    input_ids: np.ndarray
    """Token ids, shape ``(T,)``."""
    token_types: np.ndarray
    """``TEXT`` or ``ITEM`` of each token, shape ``(T,)``."""
    segments: np.ndarray
    """0 for the instruction, else which of the kept items, from 1, a token belongs to, ``(T,)``."""
    segment_ends: np.ndarray
    """Position of the last token of each kept item's segment, shape ``(n,)``, ``n`` <= items."""


class SequenceBuilder:
    """Turns histories of item rows into :class:`TokenSequence`.

    Args:
        item_texts: token ids of each item's text, one list per catalogue row.
        item_token_offset: the item in row ``i`` is the token ``item_token_offset + i``; every
            text token is below it.
        instruction: token ids at the start of every sequence.
        item_first: ``ID text`` order; otherwise ``text ID``.
        max_tokens: longest sequence. At least one item always fits behind the instruction.
    """

    def __init__(
        self,
        item_texts: Sequence[Sequence[int]],
        item_token_offset: int,
        *,
        instruction: Sequence[int] = (),
        item_first: bool = False,
        max_tokens: int = 1024,
    ) -> None:
        self.item_token_offset = item_token_offset
        self.item_first = item_first
        self.max_tokens = max_tokens
        self.instruction = np.asarray(instruction, dtype=np.int64)[: max_tokens - 1]
        self._texts = [np.asarray(text, dtype=np.int64) for text in item_texts]
        self._text_lengths = np.array([len(text) for text in self._texts])

    @property
    def max_items(self) -> int:
        """Items of a history that always fit, whatever their text."""
        return self.max_tokens - len(self.instruction)

    def length(self, items: np.ndarray, with_text: bool = True) -> int:
        """Tokens that :meth:`build` would return, without building them."""
        items, text_lengths = self._fit(items, with_text)
        return len(self.instruction) + len(items) + int(text_lengths.sum())

    def build(self, items: np.ndarray, with_text: bool = True) -> TokenSequence:
        """Tokens of a history, item rows oldest first, shape ``(n,)``.

        What exceeds ``max_tokens`` goes in this order (section B.3: text first, then items):
        texts are shortened evenly, then dropped oldest first, then the oldest items go.
        """
        items, text_lengths = self._fit(items, with_text)
        pieces = [self.instruction]
        for item, length in zip(items, text_lengths, strict=True):
            text = self._texts[item][:length]
            token = np.array([item + self.item_token_offset])
            pieces += [token, text] if self.item_first else [text, token]
        input_ids = np.concatenate(pieces)
        return TokenSequence(
            input_ids,
            token_types=np.where(input_ids >= self.item_token_offset, ITEM, TEXT),
            segments=np.repeat(
                np.arange(len(items) + 1), np.r_[len(self.instruction), text_lengths + 1]
            ),
            segment_ends=len(self.instruction) + np.cumsum(text_lengths + 1) - 1,
        )

    def _fit(self, items: np.ndarray, with_text: bool) -> tuple[np.ndarray, np.ndarray]:
        """The items that stay and how many tokens of each one's text."""
        items = items[-self.max_items :]
        if not with_text:
            return items, np.zeros(len(items), dtype=np.int64)
        room = self.max_items - len(items)
        lengths = self._text_lengths[items]
        if lengths.sum() <= room:
            return items, lengths
        lengths = np.minimum(lengths, max(_even_cap(lengths, room), MIN_TEXT_TOKENS))
        newest_first = np.cumsum(lengths[::-1])[::-1]
        return items, np.where(newest_first <= room, lengths, 0)


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
    queries: torch.Tensor
    """``(N,)``, positions in the flattened batch from which an item is predicted."""
    targets: torch.Tensor
    """``(N,)``, item rows to predict there; empty in use, where nothing is known."""
    text_queries: torch.Tensor
    """``(M,)``, positions in the flattened batch whose next token is text of the same segment."""
    item_count: int
    """Targets of the optimizer step that this batch is a part of; ``N`` if it is the whole."""
    text_count: int
    """Text queries of that step."""

    def to(self, device: torch.device | str) -> SequenceBatch:
        """The same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            token_types=self.token_types.to(device, non_blocking=True),
            segments=self.segments.to(device, non_blocking=True),
            queries=self.queries.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            text_queries=self.text_queries.to(device, non_blocking=True),
        )


def collate(
    sequences: Sequence[TokenSequence],
    pad_token_id: int,
    targets: Sequence[np.ndarray] | None = None,
) -> SequenceBatch:
    """Pad ``sequences`` on the right and place what is predicted.

    Args:
        sequences: at least one.
        pad_token_id: any text token; what stands there changes nothing.
        targets: for each sequence the items to predict at its segment ends. Without it, one
            query a sequence: its last token.
    """
    lengths = np.array([len(s.input_ids) for s in sequences])
    width = int(lengths.max())
    input_ids = np.full((len(sequences), width), pad_token_id, dtype=np.int64)
    token_types = np.full((len(sequences), width), TEXT, dtype=np.int64)
    segments = np.zeros((len(sequences), width), dtype=np.int64)
    queries = []
    for row, sequence in enumerate(sequences):
        input_ids[row, : lengths[row]] = sequence.input_ids
        token_types[row, : lengths[row]] = sequence.token_types
        segments[row, : lengths[row]] = sequence.segments
        ends = sequence.segment_ends
        queries.append(row * width + (ends[-1:] if targets is None else ends))

    is_text = (token_types == TEXT) & (np.arange(width) < lengths[:, None])
    before_text = np.zeros_like(is_text)
    before_text[:, :-1] = is_text[:, :-1] & is_text[:, 1:]
    text_queries = np.flatnonzero(before_text)
    known = np.concatenate(targets) if targets is not None else np.zeros(0, dtype=np.int64)
    return SequenceBatch(
        input_ids=torch.from_numpy(input_ids),
        token_types=torch.from_numpy(token_types),
        segments=torch.from_numpy(segments),
        queries=torch.from_numpy(np.concatenate(queries)),
        targets=torch.from_numpy(known),
        text_queries=torch.from_numpy(text_queries),
        item_count=len(known),
        text_count=len(text_queries),
    )
