"""Tokenisation of the items' texts, on all CPU cores, with an optional cache on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import tokenizers

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.files import atomic_write
from recbole_idiomoe.data.ragged import RaggedArray
from recbole_idiomoe.lm.vocabulary import encode_text

logger = logging.getLogger(__name__)

# A tokenizer's output takes hundreds of times the memory of the token ids, so it works in batches.
TEXTS_AT_ONCE = 8192


def text_tokens(
    tokenizer: Any, texts: Sequence[str], most: int, cache: str | None = None
) -> RaggedArray:
    """Return the token ids of each text, int32, as :func:`encode_text` gives them.

    Args:
        most: most tokens of a text; the rest is cut.
        cache: folder of a cache of token ids, keyed by tokenizer and texts; a damaged file is
            written again. None for no cache.

    Raises:
        SettingError: the cache lacks the tokens and cannot be written.
    """
    if cache is None or not hasattr(tokenizer, "backend_tokenizer"):
        return _tokenise(tokenizer, texts, most)
    path = Path(cache) / f"{_fingerprint(tokenizer, texts, most)}.npz"
    found = _read(path, len(texts))
    if found is None:
        found = _tokenise(tokenizer, texts, most)
        try:
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, values=found.values, lengths=found.lengths)
        except OSError as error:
            raise SettingError(
                f"token_cache={cache} cannot be written ({error.strerror}); name another folder, "
                "or leave it out."
            ) from error
    return found


def _tokenise(tokenizer: Any, texts: Sequence[str], most: int) -> RaggedArray:
    pieces = [np.zeros(0, dtype=np.int32)]
    lengths: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        rows = encode_text(tokenizer, list(texts[start : start + TEXTS_AT_ONCE]))
        cut = [row[:most] for row in rows]
        lengths += map(len, cut)
        pieces.append(np.fromiter(chain.from_iterable(cut), dtype=np.int32))
    return RaggedArray.from_lengths(np.concatenate(pieces), np.array(lengths, dtype=np.int64))


def _fingerprint(tokenizer: Any, texts: Sequence[str], most: int) -> str:
    """SHA-256 of all that determines the tokens; no text yields special tokens."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["added_tokens"] = [token for token in rules["added_tokens"] if not token["special"]]
    rules |= {"padding": None, "truncation": None}
    digest = hashlib.sha256(f"{tokenizers.__version__} {most} {len(texts)}\x1e".encode())
    digest.update(json.dumps(rules).encode())
    for text in texts:
        digest.update(f"\x1e{text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read(path: Path, count: int) -> RaggedArray | None:
    """Read the cached tokens of ``count`` texts; None if there is no usable file."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values, lengths = arrays["values"], arrays["lengths"]
        if len(lengths) != count or lengths.sum() != len(values):
            raise ValueError
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        logger.warning("%s is damaged (%s) and is written again", path, type(error).__name__)
        return None
    return RaggedArray.from_lengths(values, lengths)
