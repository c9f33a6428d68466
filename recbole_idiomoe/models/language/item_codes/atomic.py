"""One token for each item (paper, section 3.2.1)."""

from __future__ import annotations

from typing import Self

import numpy as np
from torch import Tensor

from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.ragged import RaggedArray
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.vocabulary import item_tokens
from recbole_idiomoe.models.language.forward import hidden_states
from recbole_idiomoe.models.language.item_codes.base import CodeContext, ItemCodes
from recbole_idiomoe.models.language.options import LanguageModelOptions


class AtomicCodes(ItemCodes):
    """A single token for each item; a product with the item table ranks all items.

    The caller gives new items rows in the item table.
    """

    one_token_each = True
    ranking_tokens = 0

    @classmethod
    def make(cls, context: CodeContext, vectors: np.ndarray | None = None, seed: int = 0) -> Self:
        first, item_num = context.item_token_offset, context.catalog.item_num
        tokens = np.arange(first, first + item_num)
        codes = RaggedArray.from_lengths(tokens, np.ones_like(tokens))
        return cls(codes, item_tokens(context.catalog.item_ids))

    def token_vectors(self, vectors: np.ndarray | None, catalog: Catalog) -> np.ndarray | None:
        """The items' text vectors, zero for untrained items."""
        if vectors is None:
            return None
        known = vectors.copy()
        known[catalog.untrained] = 0
        return known

    def untrained_rows(self, catalog: Catalog) -> list[int]:
        return catalog.untrained

    def ranks_untrained(self, settings: LanguageModelOptions) -> bool:
        """Whether an item's row comes from its text; without training it has no other source."""
        return settings.item_init == "text" or settings.item_text_added

    def batch_outputs(self, lm: IdiomoeForCausalLM, batch: SequenceBatch) -> Tensor:
        """The hidden state that predicts the next item of each sequence, ``(B, d)``."""
        return hidden_states(lm, batch)[batch.predict_at]

    def scores(self, lm: IdiomoeForCausalLM, outputs: Tensor) -> Tensor:
        # One product for all batches, so that the scores are in memory only once.
        return lm.item_logits(outputs)
