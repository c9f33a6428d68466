"""Sequences of tokens, padded to a batch of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recbole_idiomoe.data.sequence import ITEM, TEXT, TokenSequence


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
    is_text = np.concatenate([sequence.token_types for sequence in sequences]) == TEXT
    stops = np.cumsum([len(sequence.token_types) for sequence in sequences])
    is_followed = is_text[:-1] & is_text[1:]
    is_followed[stops[:-1] - 1] = False  # by another sequence
    return {
        "item_count": sum(len(sequence.targets) for sequence in sequences),
        "text_count": int(is_followed.sum()),
        "token_count": len(is_text),
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
