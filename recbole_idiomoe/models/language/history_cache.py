"""Scores after a history that grows, without computing any of its tokens twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.attention import sdpa_kernel
from transformers import DynamicCache

from recbole_idiomoe.data.sequence import ITEM, NOTHING
from recbole_idiomoe.models.language.catalog_lm import ATTENTION_KERNELS, CatalogLM


class HistoryCache:
    """One user's keys and values, kept from one call of :meth:`scores` to the next.

    A token sees those before it alone, so whatever two sequences begin with alike has the same
    keys and values in both, and is not computed again. An item more, or another query, changes
    the end. Where the start changes too, because the oldest item no longer fits or texts are
    shortened, all behind the change is computed anew.

    Args:
        model: one that :meth:`serves`; its weights must stay as they are.
    """

    def __init__(self, model: CatalogLM) -> None:
        self.model = model
        self._tokens = NOTHING
        # Without the backbone's configuration: layers of a sliding window would drop keys that a
        # shorter sequence needs again. Their masks hide them all the same.
        self._cache = DynamicCache()

    @staticmethod
    def serves(model: CatalogLM) -> bool:
        """Whether attention is causal, and an item is one token, scored by a product."""
        return model.settings.item_tokens == "atomic" and model.lm.item_attention is None

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # its cache would compile every layer by itself
    def scores(self, histories: Sequence[np.ndarray], query: str | None = None) -> torch.Tensor:
        """As :meth:`CatalogLM.scores`, of one history: ``(1, item_num)``."""
        model, lm = self.model, self.model.lm
        (sequence,) = model.sequences(histories, query)
        tokens = sequence.input_ids
        # The last one's state is what predicts, and only keys and values are kept.
        kept = min(_common_prefix(self._tokens, tokens), len(tokens) - 1)
        cache, cropped = self._cache, len(self._tokens) - kept
        # Should what follows be interrupted, the cache is not whole.
        self._tokens, self._cache = NOTHING, DynamicCache()
        if cropped:
            cache.crop(-cropped)
        new, types = (
            torch.from_numpy(part[None, kept:]).to(lm.device, non_blocking=True)
            for part in (tokens, sequence.token_types)
        )
        item_count = int((sequence.token_types[kept:] == ITEM).sum())
        with model.autocast(), sdpa_kernel(ATTENTION_KERNELS):
            states = lm.hidden_states(
                new, types, past_key_values=cache, use_cache=True, item_count=item_count
            ).last_hidden_state
        assert states is not None
        self._tokens, self._cache = tokens, cache
        return lm.item_logits(states[:, -1])


def _common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """How many elements two arrays begin with alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
