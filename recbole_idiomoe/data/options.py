"""Options of the items' text, and of what stands for an item in a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.options import Options, option


@dataclass(frozen=True)
class TextOptions(Options):
    """What a model that reads text can be told of it."""

    group: ClassVar[str] = "text"

    use_text: bool = option(
        True,
        "put item text into the sequence; off: item tokens only",
        section="section 3.2",
    )
    item_text_fields: dict[str, str] | list[str] | None = option(
        None,
        "columns of the .item file that make an item's text, as {role: column} or a list of "
        "columns; null: none",
        none=True,
    )
    item_template: str = option(
        "title: {title}, category: {category}",
        "item text with roles in braces; a clause whose value is empty is left out",
        section="section B.3",
    )
    instruction: str | None = option(
        "The user has interacted with",
        "text at the start of every sequence; null: none",
        none=True,
    )
    query_share: float = option(
        0.0,
        "share of training sequences that end in a query that their last item answers, for "
        "recommend(..., query=...)",
        low=0.0,
        high=1.0,
    )
    query_templates: list[str] | None = option(
        None,
        "queries to train on, with roles in braces, as ['something like {title}', '{category}']; "
        "null: each text field by itself",
        none=True,
    )
    query_prompt: str | None = option(
        "The user asks for", "text in front of a query; null: none", none=True
    )
    segment_order: str = option(
        "text ID",
        "order inside an item's segment; the paper prints 'ID text'",
        choices=("text ID", "ID text"),
    )
    max_tokens: int = option(
        1024,
        "longest sequence, items and text together, in tokens",
        low=8,
        section="section B.3",
    )
    max_item_text_tokens: int = option(64, "longest text of one item, in tokens", low=1)
    token_cache: str | None = option(
        None,
        "folder in which the items' texts are kept in tokens, found again by tokenizer and texts, "
        "so that later runs need not tokenise; null: they are not kept",
        none=True,
    )
    text_encoder: str = option(
        "tfidf",
        "where the vectors of items' text come from: tfidf, backbone (its own states), a sentence "
        "encoder's folder or hub name, or a .npz file of item_ids and vectors",
    )
    item_tokens: str = option(
        "atomic",
        "what stands for an item in a sequence: one token of its own, a short code from its text "
        "(semantic IDs), or its title's own tokens",
        choices=("atomic", "semantic", "title"),
        section="sections 3.2.1 and B.6.2",
    )
    semantic_levels: int = option(
        3,
        "codes of a semantic ID; items that share all of them get one more token",
        low=1,
        high=8,
    )
    semantic_codebook_size: int = option(
        256,
        "codes to choose from at each level of a semantic ID; a small catalogue has fewer",
        low=2,
        high=65536,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(template, str) for template in self.query_templates or []):
            raise SettingError(
                f"query_templates={self.query_templates}: texts are wanted, as ['like {{title}}']."
            )
