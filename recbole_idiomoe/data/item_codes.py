"""What stands for an item in a sequence: one token of its own, or several (``item_tokens``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_idiomoe.base.errors import CheckpointError, DataError
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.data.ragged import Ragged
from recbole_idiomoe.data.semantic_ids import SemanticIds, fit_semantic_ids
from recbole_idiomoe.lm.vocabulary import PADDING_ITEM, encode_text, item_token, item_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ItemCodes:
    """The tokens of every item, and the item tokens that they are made of."""

    codes: Sequence[np.ndarray]
    """Token ids that stand for each item, per catalogue row; no item's begin another's."""
    names: list[str]
    """What the tokenizer calls the item tokens, one for each row of the item table."""
    semantic_ids: SemanticIds | None = None
    """What they were made from, if they are semantic IDs."""

    def save(self, folder: Path) -> None:
        """Write what the catalogue and the tokenizer do not say already."""
        if self.semantic_ids is not None:
            self.semantic_ids.save(folder)


def make_item_codes(
    catalog: Catalog,
    settings: TextOptions,
    tokenizer: Any,
    item_token_offset: int,
    vectors: np.ndarray | None,
    seed: int,
) -> ItemCodes:
    """The codes of a new model, of the kind that ``item_tokens`` says.

    Args:
        tokenizer: the backbone's.
        item_token_offset: token id of the first item token.
        vectors: (item_num, k), of the items' text; only semantic IDs need them, and only those
            of items that are trained on decide what a code means.
        seed: of semantic IDs.

    Raises:
        DataError: titles are wanted and there are none.
    """
    semantic_ids = None
    if settings.item_tokens == "semantic":
        assert vectors is not None
        fitted = np.ones(catalog.item_num, dtype=bool)
        fitted[catalog.untrained] = False
        semantic_ids = fit_semantic_ids(
            vectors,
            levels=settings.semantic_levels,
            codebook_size=settings.semantic_codebook_size,
            fitted=fitted,
            seed=seed,
        )
        logger.info(semantic_ids.describe())
    return codes_of(catalog, settings, tokenizer, item_token_offset, semantic_ids)


def load_item_codes(
    folder: Path, catalog: Catalog, settings: TextOptions, tokenizer: Any, item_token_offset: int
) -> ItemCodes:
    """The codes of a saved model, from what :meth:`ItemCodes.save` wrote.

    Raises:
        CheckpointError: its semantic IDs are missing, broken or of another catalogue.
    """
    semantic_ids = None
    if settings.item_tokens == "semantic":
        semantic_ids = SemanticIds.load(folder)
        if semantic_ids.item_num != catalog.item_num:
            raise CheckpointError(
                f"{folder} has semantic IDs of {semantic_ids.item_num - 1} items, its catalogue "
                f"{catalog.item_num - 1}; they do not belong together."
            )
    return codes_of(catalog, settings, tokenizer, item_token_offset, semantic_ids)


def codes_of(
    catalog: Catalog,
    settings: TextOptions,
    tokenizer: Any,
    item_token_offset: int,
    semantic_ids: SemanticIds | None,
) -> ItemCodes:
    """The codes of ``catalog``: of its semantic IDs if there are any, else by ``item_tokens``.

    Raises:
        DataError: titles are wanted and there are none.
    """
    if semantic_ids is not None:
        return semantic_codes(semantic_ids, item_token_offset)
    if settings.item_tokens == "title":
        return title_codes(catalog, tokenizer, settings.max_item_text_tokens)
    return atomic_codes(catalog, item_token_offset)


def atomic_codes(catalog: Catalog, item_token_offset: int) -> ItemCodes:
    """A token for each item (paper, section 3.2.1)."""
    rows = np.arange(item_token_offset, item_token_offset + catalog.item_num)
    return ItemCodes(Ragged.joined(rows, np.ones_like(rows)), item_tokens(catalog.item_ids))


def semantic_codes(semantic_ids: SemanticIds, item_token_offset: int) -> ItemCodes:
    """A token for each level of an item's semantic ID, and one more where items share all."""
    codes = [row[row > 0] + item_token_offset for row in semantic_ids.tokens]
    return ItemCodes(codes, semantic_ids.token_names(), semantic_ids)


def title_codes(catalog: Catalog, tokenizer: Any, max_tokens: int) -> ItemCodes:
    """The text tokens of each item's title and an end (Title-LLM); items of one title share it.

    Args:
        max_tokens: of a title; the end is beside them.

    Raises:
        DataError: no item has a title, or the tokenizer has no end.
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
