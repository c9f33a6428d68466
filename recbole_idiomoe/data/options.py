"""Options of the items' text and of the items' tokens in a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.options import Options, PositiveInt, Range, Share


@dataclass(frozen=True)
class TextOptions(Options):
    """Options of a model that reads the items' text."""

    group = "text"

    use_text: bool = True
    """Put item text into the sequence; off: item tokens only [section 3.2]."""
    item_text_fields: dict[str, str] | list[str] | None = None
    """Columns of the .item file that make an item's text, as {role: column} or a list of columns;
    null: none."""
    item_template: str = "title: {title}, category: {category}"
    """Item text with roles in braces; a clause whose value is empty is left out [section B.3]."""
    instruction: str | None = "The user has interacted with"
    """Text at the start of every sequence; null: none."""
    query_share: Share = 0.0
    """Share of training sequences that end in a query which their last item answers, for
    recommend(..., query=...)."""
    query_templates: list[str] | None = None
    """Queries to train on, with roles in braces, as ['something like {title}', '{category}']; null:
    each text field by itself."""
    query_prompt: str | None = "The user asks for"
    """Text before a query; null: none."""
    segment_order: Literal["text ID", "ID text"] = "text ID"
    """Order inside an item's segment; the paper prints 'ID text'."""
    max_tokens: Annotated[int, Range(low=8)] = 1024
    """Longest sequence, items and text together, in tokens [section B.3]."""
    max_item_text_tokens: PositiveInt = 64
    """Longest text of one item, in tokens."""
    token_cache: str | None = None
    """Folder for the tokens of the items' texts, so that later runs with the same tokenizer and
    texts need not tokenise; null: they are not kept."""
    text_encoder: str = "tfidf"
    """Source of the items' text vectors: tfidf, backbone (its own states), a sentence encoder's
    folder or hub name, or a .npz file of item_ids and vectors."""
    item_tokens: Literal["atomic", "semantic", "title"] = "atomic"
    """Tokens of an item in a sequence: a single token of its own, a short code from its text
    (semantic IDs), or the tokens of its title [sections 3.2.1 and B.6.2]."""
    semantic_levels: Annotated[int, Range(1, 8)] = 3
    """Number of codes of a semantic ID; items that share all of them get one more token."""
    semantic_codebook_size: Annotated[int, Range(2, 65536)] = 256
    """Number of different codes at each level of a semantic ID; a small catalogue has fewer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(template, str) for template in self.query_templates or []):
            raise SettingError(
                f"query_templates={self.query_templates}: texts are wanted, as ['like {{title}}']."
            )
