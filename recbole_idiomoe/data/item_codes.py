"""What stands for an item in a sequence: one token of its own, or several (``item_tokens``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.semantic_ids import SemanticIds
from recbole_idiomoe.errors import DataError
from recbole_idiomoe.lm.vocabulary import PADDING_ITEM, encode_text, item_token, item_tokens


@dataclass(frozen=True)
class ItemCodes:
    """The tokens of every item, and the item tokens that they are made of."""

    codes: list[np.ndarray]
    """Token ids that stand for each item, per catalogue row; no code begins another."""
    names: list[str]
    """What the tokenizer calls the item tokens, one for each row of the item table."""


def atomic_codes(catalog: Catalog, item_token_offset: int) -> ItemCodes:
    """A token for each item (paper, section 3.2.1)."""
    rows = np.arange(item_token_offset, item_token_offset + catalog.item_num)
    return ItemCodes(list(rows[:, None]), item_tokens(catalog.item_ids))


def semantic_codes(semantic_ids: SemanticIds, item_token_offset: int) -> ItemCodes:
    """A token for each level of an item's semantic ID, and one more where items share all."""
    codes = [row[row > 0] + item_token_offset for row in semantic_ids.tokens]
    return ItemCodes(codes, semantic_ids.token_names())


def title_codes(catalog: Catalog, tokenizer: Any, max_tokens: int) -> ItemCodes:
    """The text tokens of each item's title and an end (Title-LLM); items of one title share it.

    Args:
        max_tokens: of a title; the end is beside them.

    Raises:
        DataError: no item has a title.
    """
    if not any(catalog.titles):
        raise DataError(
            "item_tokens='title': no item has a title; name its column first in item_text_fields."
        )
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError("item_tokens='title' needs a backbone whose tokenizer has an end token.")
    titles = encode_text(tokenizer, catalog.titles)
    codes = [np.array([*title[:max_tokens], end], dtype=np.int64) for title in titles]
    return ItemCodes(codes, [item_token(PADDING_ITEM)])
