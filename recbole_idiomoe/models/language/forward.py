"""The language model's pass over a batch of sequences."""

from __future__ import annotations

import torch

from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.decoder import attention_kernels


def hidden_states(lm: IdiomoeForCausalLM, batch: SequenceBatch) -> torch.Tensor:
    """Final hidden states of all positions of (B, T) tokens, flattened to ``(B * T, d)``."""
    with attention_kernels():
        output = lm.hidden_states(
            batch.input_ids,
            token_types=batch.token_types,
            segments=batch.segments,
            item_count=batch.item_tokens,
        )
    states = output.last_hidden_state
    assert states is not None
    return states.flatten(0, 1)
