"""The kinds of item codes, and the text vectors that a new model with them starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.models.language.item_codes.atomic import AtomicCodes
from recbole_idiomoe.models.language.item_codes.base import ItemCodes
from recbole_idiomoe.models.language.item_codes.semantic import SemanticCodes
from recbole_idiomoe.models.language.item_codes.title import TitleCodes
from recbole_idiomoe.models.language.options import LanguageModelOptions

ITEM_CODES: dict[str, type[ItemCodes]] = {
    "atomic": AtomicCodes,
    "semantic": SemanticCodes,
    "title": TitleCodes,
}
"""The class for each choice of ``item_tokens``."""


def starting_vectors(
    catalog: Catalog,
    settings: LanguageModelOptions,
    backbone: tuple[Any, Any],
    device: torch.device,
    seed: int,
) -> np.ndarray | None:
    """The vectors of the items' texts, ``(item_num, k)``, or None if the new model needs none.

    Args:
        backbone: the pretrained decoder and its tokenizer.
        device: where the backbone encodes texts, if ``text_encoder`` asks for it.

    Raises:
        DataError: the model needs the vectors, and no item has text.
    """
    codes = ITEM_CODES[settings.item_tokens]
    needed_by = {
        "item_text_added": settings.item_text_added,
        f"item_tokens={settings.item_tokens!r}": codes.from_vectors,
        "text_smoothing": settings.text_smoothing > 0,
    }
    has_text = any(catalog.texts)
    for name, needed in needed_by.items():
        if needed and not has_text:
            raise DataError(
                f"{name}: no item has text; name its columns in item_text_fields, or leave it out."
            )
    starts_rows = settings.item_init == "text" and not codes.in_text
    if not has_text or not (starts_rows or any(needed_by.values())):
        return None
    return item_vectors(
        catalog,
        settings.text_encoder,
        dim=settings.item_embedding_dim or backbone[0].config.hidden_size,
        backbone=backbone,
        device=device,
        seed=seed,
    )
