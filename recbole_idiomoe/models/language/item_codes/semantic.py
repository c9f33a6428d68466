"""Semantic IDs as the codes of items (paper, section B.6.2)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from recbole_idiomoe.base.errors import CheckpointError
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.data.semantic_ids import SemanticIds, fit_semantic_ids
from recbole_idiomoe.data.text_encoder import changed_encoder
from recbole_idiomoe.models.language.item_codes.base import CodeContext, ItemCodes

logger = logging.getLogger(__name__)

# Share of the items whose codes may change when their text is encoded again: rounding of a vector
# may decide between two codes.
_TOLERATED = 0.001


class SemanticCodes(ItemCodes):
    """One item token per level of the semantic ID, and another one if items share all levels."""

    from_vectors = True

    def __init__(self, semantic_ids: SemanticIds, item_token_offset: int) -> None:
        codes = [row[row > 0] + item_token_offset for row in semantic_ids.tokens]
        super().__init__(codes, semantic_ids.token_names())
        self.semantic_ids = semantic_ids

    @classmethod
    def make(cls, context: CodeContext, vectors: np.ndarray | None = None, seed: int = 0) -> Self:
        assert vectors is not None
        semantic_ids = semantic_ids_of(context.catalog, context.settings, vectors, seed)
        return cls(semantic_ids, context.item_token_offset)

    @classmethod
    def load(cls, context: CodeContext, folder: Path) -> Self:
        semantic_ids = SemanticIds.load(folder)
        if semantic_ids.item_num != context.catalog.item_num:
            raise CheckpointError(
                f"{folder} has semantic IDs of {semantic_ids.item_num - 1} items, its catalogue "
                f"{context.catalog.item_num - 1}; they do not belong together."
            )
        return cls(semantic_ids, context.item_token_offset)

    def save(self, folder: Path) -> None:
        """Write the semantic IDs with their codebooks."""
        self.semantic_ids.save(folder)

    def with_items(self, context: CodeContext, vectors: Callable[[], np.ndarray]) -> Self:
        """Each new item gets the code nearest to its text vector.

        An old item gets a further token if a new item has the same code.
        """
        ids, found = self.semantic_ids, vectors()
        known = slice(1, ids.item_num)
        if found.shape[1] != len(ids.mean) or (
            (ids.encode(found[known]) != ids.codes[known]).any(axis=1).mean() > _TOLERATED
        ):
            raise changed_encoder(context.settings.text_encoder)
        return type(self)(ids.with_items(found[ids.item_num :]), context.item_token_offset)

    def token_vectors(self, vectors: np.ndarray | None, catalog: Catalog) -> np.ndarray | None:
        """The vectors of the codebooks."""
        return self.semantic_ids.token_vectors()


def semantic_ids_of(
    catalog: Catalog, settings: TextOptions, vectors: np.ndarray, seed: int
) -> SemanticIds:
    """Semantic IDs of all items, with codebooks that are fitted on trained items.

    Args:
        vectors: ``(item_num, k)``, vectors of the items' texts.
        seed: seed of the codebooks.
    """
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
    return semantic_ids
