"""Scores for a growing history, computed without reading any of its tokens twice."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from recbole_idiomoe.data.sequence import ITEM, NOTHING
from recbole_idiomoe.lm.decoder import attention_kernels
from recbole_idiomoe.models.language.catalog_lm import CatalogLM


class HistoryCache:
    """Keys and values of one user's history, kept from one call of :meth:`scores` to the next.

    A token attends only to the tokens before it, so the common start of two sequences has the same
    keys and values in both and is computed once. A further item or another query changes only the
    end. If the start changes, because the oldest item no longer fits or texts are shortened,
    everything after the change is computed again.

    Args:
        model: a model for which :meth:`serves` is true and whose weights do not change.
    """

    def __init__(self, model: CatalogLM) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._tokens = NOTHING
        # Made without the backbone's configuration, with which layers with a sliding window would
        # drop keys that a shorter sequence needs again. Attention masks hide these keys.
        self._cache = DynamicCache()

    @staticmethod
    def serves(model: CatalogLM) -> bool:
        """Whether ``model`` can be used: it needs causal attention, and one token for each item."""
        return model.item_codes.one_token_each and model.lm.item_attention is None

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray], query: str | None = None) -> torch.Tensor:
        """Scores of every item after a single history, ``(1, item_num)``, float32.

        Arguments and errors are those of :meth:`CatalogLM.scores`.
        """
        with self._lock:  # the cache is of one call at a time
            return self._scores(histories, query)

    def _scores(self, histories: Sequence[np.ndarray], query: str | None) -> torch.Tensor:
        model, lm = self.model, self.model.lm
        (sequence,) = model.sequences(histories, query)
        tokens = sequence.input_ids
        # The last token is always read again: its state predicts, and states are not kept.
        kept = min(_common_prefix(self._tokens, tokens), len(tokens) - 1)
        cache, cropped = self._cache, len(self._tokens) - kept
        # If the pass below is interrupted, the cache is incomplete and must not be used again.
        self._tokens, self._cache = NOTHING, DynamicCache()
        if cropped:
            cache.crop(-cropped)
        new, types = (
            torch.from_numpy(part[None, kept:]).to(lm.device, non_blocking=True)
            for part in (tokens, sequence.token_types)
        )
        item_count = int((sequence.token_types[kept:] == ITEM).sum())
        with model.autocast(), attention_kernels():
            states = lm.hidden_states(
                new, types, past_key_values=cache, use_cache=True, item_count=item_count
            ).last_hidden_state
        assert states is not None
        self._tokens, self._cache = tokens, cache
        return lm.item_logits(states[:, -1])


def _common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Number of equal elements at the start of two arrays."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
