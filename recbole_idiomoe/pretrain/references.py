"""Bits per byte to compare a model with: the xz compressor's and those of a 5-gram model."""

from __future__ import annotations

import lzma
import math
from collections.abc import Sequence

import numpy as np


def xz_bits_per_byte(texts: Sequence[str]) -> float:
    """Bits per byte of the joined texts, compressed by ``xz -9e``."""
    data = "".join(texts).encode()
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)


class ByteNgrams:
    """Interpolated Witten-Bell n-grams of bytes.

    ``p(c | h) = (n(hc) + t(h) p(c | h')) / (n(h) + t(h))``, where ``t(h)`` is the number of
    different bytes seen after ``h`` and ``h'`` is ``h`` without its oldest byte; the shortest
    context backs off to the uniform distribution.

    Args:
        texts: training texts; contexts do not cross the start of a text.
        order: length of the longest n-gram in bytes, at most 7.
    """

    def __init__(self, texts: Sequence[str], order: int = 5) -> None:
        self.order = order
        # Counting text by text first avoids sorting the n-grams of all texts at once.
        found = [np.unique(_codes(text, order), return_counts=True) for text in texts]
        grams, counts = _sum(*map(np.concatenate, zip(*found, strict=True)))
        self._tables = []
        for n in range(1, order + 1):
            codes, number = _sum(grams & _mask(n), counts)
            contexts, total = _sum(codes >> np.uint64(8), number)
            _, different = np.unique(codes >> np.uint64(8), return_counts=True)
            self._tables.append((codes, number, contexts, total, different))

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """The cross entropy of ``texts`` under the model, in bits per byte."""
        bits, byte_num = 0.0, 0
        for text in texts:
            codes = _codes(text, self.order)
            p = np.full(len(codes), 1 / 256)
            for n, (grams, number, contexts, total, different) in enumerate(self._tables, 1):
                seen = _look_up(grams, number, codes & _mask(n))
                history = (codes & _mask(n)) >> np.uint64(8)
                n_h = _look_up(contexts, total, history)
                t_h = _look_up(contexts, different, history)
                known = n_h > 0
                p[known] = (seen + t_h * p)[known] / (n_h + t_h)[known]
            bits -= float(np.log(p).sum()) / math.log(2)
            byte_num += len(codes)
        return bits / byte_num


def _codes(text: str, order: int) -> np.ndarray:
    """The n-gram that ends at each byte as one integer, padded with zeros at the start."""
    data = np.frombuffer(text.encode(), np.uint8)
    codes = np.zeros(len(data), np.uint64)
    for back in range(min(order, len(data))):
        codes[back:] |= data[: len(data) - back].astype(np.uint64) << np.uint64(8 * back)
    return codes


def _mask(n: int) -> np.uint64:
    return np.uint64((1 << 8 * n) - 1)


def _sum(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys in ascending order, and the sum of the counts of each."""
    distinct, index = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(index, weights=counts, minlength=len(distinct)).astype(np.int64)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key; 0 for a key that is not in ``keys``."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
