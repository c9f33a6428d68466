"""Vectors of the items' texts for a new language model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.models.language.item_codes.factory import ITEM_CODES
from recbole_idiomoe.models.language.options import LanguageModelOptions


def starting_vectors(
    catalog: Catalog,
    settings: LanguageModelOptions,
    backbone: tuple[Any, Any],
    device: torch.device,
    seed: int,
) -> np.ndarray | None:
    """The vectors of the items' texts, ``(item_num, k)``, or None if the model uses none.

    Args:
        backbone: the decoder before any training, and its tokenizer.
        device: where the backbone encodes texts, if ``text_encoder`` asks for it.
        seed: seed of everything random.

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
