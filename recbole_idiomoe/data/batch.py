"""Collation of token sequences into padded batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recbole_idiomoe.data.sequence import ITEM, TEXT, TokenSequence


@dataclass
class SequenceBatch:
    """Right-padded sequences and their targets.

    Causal attention needs no padding mask, because all padding is to the right of real tokens.
    """

    input_ids: torch.Tensor
    """Token ids, shape ``(B, T)``."""
    token_types: torch.Tensor
    """0 text, 1 item, shape ``(B, T)``; padding is text."""
    segments: torch.Tensor
    """Number of each token's item, shape ``(B, T)``; 0 for instruction, query and padding."""
    lengths: torch.Tensor
    """Number of tokens of each sequence, shape ``(B,)``."""
    predict_at: torch.Tensor
    """Positions in the flattened batch from which item tokens are predicted, shape ``(N,)``."""
    targets: torch.Tensor
    """Tokens to predict there, shape ``(N,)``; empty at inference, shape ``(0,)``."""
    previous: torch.Tensor
    """Row of the item before each target's item, 0 after a query, shape as ``targets``."""
    predict_text_at: torch.Tensor
    """Positions in the flattened batch of text tokens before text tokens, shape ``(M,)``.
    Instruction and query are text too."""
    item_count: float
    """Number of targets in the whole optimizer step, which may have several batches."""
    text_count: float
    """Number of text predictions in the whole optimizer step."""
    token_count: float
    """Number of tokens in the whole optimizer step, padding excluded."""
    item_tokens: int
    """Number of item tokens in this batch, known without waiting for a GPU."""

    @property
    def is_real(self) -> torch.Tensor:
        """False for padding, shape ``(B, T)``; the padding token may occur in texts too."""
        position = torch.arange(self.input_ids.shape[1], device=self.lengths.device)
        return position < self.lengths.unsqueeze(1)

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Copy the batch to a device; from pinned memory, the copy is asynchronous."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> SequenceBatch:
        """Copy the batch to pinned memory; torch's DataLoader calls this."""
        return self._with_each(torch.Tensor.pin_memory)

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SequenceBatch:
        tensors = {n: value for n, value in vars(self).items() if isinstance(value, torch.Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def counts(sequences: Sequence[TokenSequence]) -> dict[str, Any]:
    """``item_count``, ``text_count`` and ``token_count`` of a step with these sequences."""
    is_text = np.concatenate([sequence.token_types for sequence in sequences]) == TEXT
    stops = np.cumsum([len(sequence.token_types) for sequence in sequences])
    is_followed = is_text[:-1] & is_text[1:]
    is_followed[stops[:-1] - 1] = False  # the next token is in another sequence
    return {
        "item_count": sum(len(sequence.targets) for sequence in sequences),
        "text_count": int(is_followed.sum()),
        "token_count": len(is_text),
    }


def collate(sequences: Sequence[TokenSequence], pad_token_id: int) -> SequenceBatch:
    """Pad sequences, at least one, on the right; any text token can be ``pad_token_id``."""
    lengths = np.array([len(s.input_ids) for s in sequences])
    width = int(lengths.max())
    padding = {"input_ids": pad_token_id, "token_types": TEXT, "segments": 0}
    arrays: dict[str, np.ndarray] = {
        name: np.full((len(sequences), width), value, dtype=np.int64)
        for name, value in padding.items()
    }
    for row, sequence in enumerate(sequences):
        for name in padding:
            arrays[name][row, : lengths[row]] = getattr(sequence, name)

    is_text = (arrays["token_types"] == TEXT) & (np.arange(width) < lengths[:, None])
    before_text = np.zeros_like(is_text)
    before_text[:, :-1] = is_text[:, :-1] & is_text[:, 1:]
    arrays |= {
        "lengths": lengths,
        "predict_at": np.concatenate([i * width + s.predict_at for i, s in enumerate(sequences)]),
        "targets": np.concatenate([s.targets for s in sequences]),
        "previous": np.concatenate([s.previous for s in sequences]),
        "predict_text_at": np.flatnonzero(before_text),
    }
    content = {name: torch.from_numpy(array) for name, array in arrays.items()} | counts(sequences)
    return SequenceBatch(**content, item_tokens=int((arrays["token_types"] == ITEM).sum()))
