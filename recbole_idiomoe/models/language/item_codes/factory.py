"""Which class writes items as the setting ``item_tokens`` says."""

from __future__ import annotations

from recbole_idiomoe.models.language.item_codes.atomic import AtomicCodes
from recbole_idiomoe.models.language.item_codes.base import ItemCodes
from recbole_idiomoe.models.language.item_codes.semantic import SemanticCodes
from recbole_idiomoe.models.language.item_codes.title import TitleCodes

ITEM_CODES: dict[str, type[ItemCodes]] = {
    "atomic": AtomicCodes,
    "semantic": SemanticCodes,
    "title": TitleCodes,
}
"""The class for each choice of ``item_tokens``."""
