"""Tokenizers: training, item tokens, and text that never yields one (section 3.2.1)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from recbole_idiomoe.base.errors import BackboneError, DataError

PADDING_ITEM = "[PAD]"
END_OF_TEXT = "<|endoftext|>"

_encoding = threading.Lock()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a tokenizer on ``texts``.

    Text is split as in Qwen2.5, with single digits. Unlike Qwen2.5's, the tokenizer does not
    normalise, so that decoding gives exactly the encoded string for any Unicode. The end-of-text
    token is also the padding token.

    Args:
        texts: valid Unicode; see :func:`clean_text`.
        vocab_size: most tokens, the end-of-text token included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def item_token(item_id: str) -> str:
    """The token of an item, by the item's id in the data files."""
    return f"<|it-{item_id}|>"


def item_tokens(item_ids: Sequence[str]) -> list[str]:
    """The tokens of all items; the first one is the padding item's, whatever its id is."""
    return [item_token(item_id) for item_id in (PADDING_ITEM, *item_ids[1:])]


def add_item_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], vocab_size: int
) -> None:
    """Add item tokens to a tokenizer, in place: ``tokens[i]`` becomes token ``vocab_size + i``.

    If the tokenizer is smaller than the embedding, ``<|reserved-N|>`` tokens fill the gap. This
    takes 0.1 s for 20,000 items. Read a token back with ``convert_ids_to_tokens``, because a
    byte-level ``decode`` garbles item ids outside ASCII.

    Args:
        tokenizer: the backbone's tokenizer, without item tokens.
        tokens: the items' tokens, the padding item's first.
        vocab_size: rows of the backbone's text embedding.

    Raises:
        BackboneError: the tokenizer has more tokens than the embedding has rows, or its ids have
            gaps.
        DataError: a token appears twice.
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
    """Append new item tokens after those of :func:`add_item_tokens`, in place."""
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in tokens], special_tokens=True
    )


def clean_text(text: str) -> str:
    """Make ``text`` valid UTF-8: join surrogate pairs and replace lone surrogates by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_text(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of plain texts, without BOS, EOS and other special or item tokens.

    A title that contains ``<|endoftext|>`` or ``<|it-5|>`` is encoded as ordinary characters, so
    that the text of a catalogue can neither inject an item nor end a sequence.
    """
    if not texts:
        return []
    # A tokenizer stores these options on itself, and fails where a thread sets them while another
    # one encodes.
    with _encoding:
        disable_word_cache(tokenizer)
        encoded = tokenizer(
            [clean_text(text) for text in texts],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
    return encoded["input_ids"]


def disable_word_cache(tokenizer: PreTrainedTokenizerBase) -> None:
    """Turn off a tokenizer's cache of words, which would leak memory.

    tokenizers 0.23 caches the words of each tokenizer per thread and frees them when the thread
    ends, which never happens in a service that loads one model after another.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if resize := getattr(model, "_resize_cache", None):
        resize(0)
