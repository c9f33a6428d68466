"""Training text: files are read, split, tokenized and packed into windows."""

from __future__ import annotations

import gzip
import lzma
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.lm.vocabulary import encode_text

SEPARATOR = re.compile(r"^\x1e\r?\n?", re.MULTILINE)
TEXTS_AT_ONCE = 64
_OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open}


def read_texts(file: str) -> list[str]:
    """The texts of a file in its order, without empty ones.

    Raises:
        DataError: the file cannot be read, or has no text.
    """
    path = Path(file).expanduser()
    try:
        # newline="" keeps carriage returns, which are part of the text.
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8", newline="") as stream:
            content = stream.read()
    except (EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}; UTF-8 text is wanted.") from error
    except OSError as error:  # gzip raises errors without strerror
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
    texts = [text for text in SEPARATOR.split(content) if text.strip()]
    if not texts:
        raise DataError(f"{file} holds no text.")
    return texts


def hold_out(texts: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split ``texts`` at random: to train on, and a held-out ``share`` of at least one.

    Raises:
        DataError: no text is left to train on.
    """
    count = max(1, round(share * len(texts)))
    if count >= len(texts):
        raise DataError(
            f"of {len(texts)} texts {count} would be held out and none be left to train on; put a "
            "line with the character U+001E between texts, or lower --holdout."
        )
    held = set(random.Random(seed).sample(range(len(texts)), count))
    trained = [text for i, text in enumerate(texts) if i not in held]
    return trained, [texts[i] for i in sorted(held)]


def pack(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """The tokens of all texts (n,), uint16, with end-of-text around each text."""
    end = np.array([tokenizer.eos_token_id], dtype=np.uint16)
    parts = [end]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        for ids in encode_text(tokenizer, list(texts[start : start + TEXTS_AT_ONCE])):
            parts += [np.array(ids, dtype=np.uint16), end]
    return np.concatenate(parts)


class Windows:
    """Batches of windows of a token stream, determined by a seed and the step.

    Each epoch cuts the stream at another random offset and shuffles the windows. Windows that do
    not fill a batch are left out of the epoch.

    Args:
        tokens: the packed stream, shape ``(n,)``.
        context: number of tokens that a window predicts.

    Raises:
        DataError: the stream is shorter than one batch.
    """

    def __init__(self, tokens: np.ndarray, context: int, batch_size: int, seed: int) -> None:
        self.tokens, self.context, self.batch_size, self.seed = tokens, context, batch_size, seed
        # One window fewer than fit leaves room for the offset.
        self.window_num = (len(tokens) - 1) // context - 1
        self.steps_per_epoch = self.window_num // batch_size
        if self.steps_per_epoch < 1:
            raise DataError(
                f"{len(tokens)} tokens of text do not fill a batch of {batch_size} windows of "
                f"{context}; give more text, or a smaller --batch_size or --context."
            )

    def batches(self, first: int, last: int) -> Iterator[torch.Tensor]:
        """The batches of steps ``first`` to ``last - 1``, each ``(batch_size, context + 1)``."""
        step = first
        while step < last:
            epoch, within = divmod(step, self.steps_per_epoch)
            generator = np.random.default_rng((self.seed, epoch))
            starts = generator.permutation(self.window_num) * self.context
            starts += generator.integers(self.context)
            for batch in range(within, min(self.steps_per_epoch, within + last - step)):
                chosen = starts[batch * self.batch_size : (batch + 1) * self.batch_size]
                positions: Any = chosen[:, None] + np.arange(self.context + 1)
                yield torch.from_numpy(self.tokens[positions].astype(np.int64))
                step += 1
