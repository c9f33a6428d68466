"""Titles as the codes of items (Title-LLM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
from torch import Tensor

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.vocabulary import PADDING_ITEM, encode_text, item_token
from recbole_idiomoe.models.language.item_codes.base import CodeContext, ItemCodes


class TitleCodes(ItemCodes):
    """The text tokens of each item's title and an end token.

    Items with the same title have the same code. Only the padding item has an item token.
    """

    in_text = True

    @classmethod
    def make(cls, context: CodeContext, vectors: np.ndarray | None = None, seed: int = 0) -> Self:
        titles, tokenizer = context.catalog.titles, context.tokenizer
        if not any(titles):
            raise DataError(
                "item_tokens='title': no item has a title; name its column first in "
                "item_text_fields."
            )
        end = tokenizer.eos_token_id
        if end is None:
            raise DataError(
                "item_tokens='title' needs a backbone whose tokenizer has an end token."
            )
        most = context.settings.max_item_text_tokens
        tokens = encode_text(tokenizer, titles)
        codes = [np.array([*title[:most], end], dtype=np.int64) for title in tokens]
        return cls(codes, [item_token(PADDING_ITEM)])

    def loss(
        self, lm: IdiomoeForCausalLM, hidden_states: Tensor, targets: Tensor, excluded: Tensor
    ) -> Tensor:
        return lm.text_loss(hidden_states, targets)

    def _token_logits(self, lm: IdiomoeForCausalLM) -> tuple[Callable[[Tensor], Tensor], int]:
        return lm.text_logits, 0
