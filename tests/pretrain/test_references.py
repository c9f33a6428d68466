from __future__ import annotations

import itertools
import lzma
import math
from collections import Counter, defaultdict

import pytest

from recbole_idiomoe.pretrain.references import ByteNgrams, xz_bits_per_byte

from .conftest import sentences

TEXTS = ["abracadabra", "a cadabra bar", "\x00\x00b"]


def witten_bell(texts: list[str], order: int, test: str) -> float:
    """Bits per byte by the recursion, one byte at a time."""
    counts: dict[bytes, Counter[int]] = defaultdict(Counter)
    for text in texts:
        data = bytes(order) + text.encode()
        for at, n in itertools.product(range(order, len(data)), range(order)):
            counts[data[at - n : at]][data[at]] += 1

    def p(byte: int, history: bytes) -> float:
        shorter = p(byte, history[1:]) if history else 1 / 256
        seen = counts.get(history)
        if not seen:
            return shorter
        return (seen[byte] + len(seen) * shorter) / (seen.total() + len(seen))

    data = bytes(order) + test.encode()
    steps = range(order, len(data))
    return -sum(math.log2(p(data[at], data[at - order + 1 : at])) for at in steps) / len(steps)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("test", ["abracadabra", "bracken", "zzz é", "\x00b"])
def test_ngrams_equal_the_recursion(order: int, test: str) -> None:
    found = ByteNgrams(TEXTS, order).bits_per_byte([test])
    assert found == pytest.approx(witten_bell(TEXTS, order, test), rel=1e-12)


def test_longer_contexts_predict_better() -> None:
    train, test = [sentences(0, 300)], [sentences(1, 50)]
    bits = [ByteNgrams(train, order).bits_per_byte(test) for order in (1, 3, 5)]
    assert bits[0] > bits[1] > bits[2]


def test_xz_is_the_size_that_the_library_gives() -> None:
    text = sentences(3, 40)
    size = len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    assert xz_bits_per_byte([text]) == 8 * size / len(text)
