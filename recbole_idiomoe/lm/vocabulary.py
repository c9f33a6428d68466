"""Item tokens in a tokenizer, and text that can never turn into one (section 3.2.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from transformers import AddedToken, PreTrainedTokenizerBase

from recbole_idiomoe.base.errors import BackboneError, DataError

PADDING_ITEM = "[PAD]"


def item_token(item_id: str) -> str:
    """The token of the item with this id of the catalogue's own."""
    return f"<|it-{item_id}|>"


def item_tokens(item_ids: Sequence[str]) -> list[str]:
    """The tokens of a catalogue; the first id is the padding item's, whatever it says."""
    return [item_token(item_id) for item_id in (PADDING_ITEM, *item_ids[1:])]


def add_item_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], vocab_size: int
) -> None:
    """Add item tokens, so that ``tokens[i]`` is token ``vocab_size + i``; in place.

    ``<|reserved-N|>`` tokens fill the gap where the tokenizer is smaller than the
    embedding. Takes 0.1 s for 20,000 items. Read a token back with
    ``convert_ids_to_tokens``: a byte-level ``decode`` garbles ids outside ASCII.

    Args:
        tokenizer: the backbone's, without item tokens.
        tokens: the padding item's first.
        vocab_size: rows of the backbone's text embedding.

    Raises:
        BackboneError: the tokenizer holds more tokens than the embedding, or numbers
            them with gaps.
        DataError: a token that appears twice.
    """
    size = len(tokenizer)
    if size > vocab_size:
        raise BackboneError(
            f"the tokenizer holds {size} tokens, the backbone's embedding {vocab_size}: item "
            "tokens need the tokenizer that came with the backbone."
        )
    if len(set(tokens)) != len(tokens):
        [(twice, _)] = Counter(tokens).most_common(1)
        raise DataError(f"the item token {twice} appears twice in the catalogue.")
    reserved = [f"<|reserved-{n}|>" for n in range(vocab_size - size)]
    append_item_tokens(tokenizer, [*reserved, *tokens])
    expected = list(range(vocab_size, vocab_size + len(tokens)))
    if tokenizer.convert_tokens_to_ids(list(tokens)) != expected:
        raise BackboneError(
            "the tokenizer does not number its tokens without gaps, so that item tokens cannot "
            f"follow the {vocab_size} text tokens; choose another backbone."
        )


def append_item_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add further tokens, unknown so far, behind those of :func:`add_item_tokens`; in place."""
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in tokens],
        special_tokens=True,
    )


def clean_text(text: str) -> str:
    """``text`` with surrogate pairs joined and lone surrogates as U+FFFD: valid UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_text(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of plain texts: no BOS, no EOS, and no special or item token.

    A title that spells ``<|endoftext|>`` or ``<|it-5|>`` is read letter by letter, so
    that a catalogue cannot inject an item or end a sequence.
    """
    if not texts:
        return []
    keep_no_words(tokenizer)
    encoded = tokenizer(
        [clean_text(text) for text in texts],
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return encoded["input_ids"]


def keep_no_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer split each word anew: what it remembers would outlive it.

    tokenizers 0.23 remembers, for each tokenizer, the words that it met in each thread, and forgets
    them when the thread ends: in a service that loads one model after another, never.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if resize := getattr(model, "_resize_cache", None):
        resize(0)
