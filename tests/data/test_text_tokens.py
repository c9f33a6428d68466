"""Texts in tokens are those of the tokenizer, made in pieces or read again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from recbole_idiomoe.data import text_tokens as module
from recbole_idiomoe.data.text_tokens import text_tokens
from recbole_idiomoe.lm import add_item_tokens, encode_text
from recbole_idiomoe.lm.bundled import verified_folder

TEXTS = ["", "title: A wooden train", "<|endoftext|>", *(f"title: number {n}" for n in range(20))]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(verified_folder(weights=False))


def rows(ragged: Any) -> list[list[int]]:
    return [row.tolist() for row in ragged]


@pytest.mark.parametrize("most", [3, 64])
def test_pieces_make_the_whole(most: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 4)
    assert rows(text_tokens(tokenizer, TEXTS, most)) == [
        row[:most] for row in encode_text(tokenizer, TEXTS)
    ]
    assert len(text_tokens(tokenizer, [], most)) == 0


def test_they_are_kept_for_the_same_texts_alone(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    wanted = rows(text_tokens(tokenizer, TEXTS, 8, cache))
    made = []
    tokenise = module._tokenise
    monkeypatch.setattr(module, "_tokenise", lambda *a: made.append(1) or tokenise(*a))

    assert rows(text_tokens(tokenizer, TEXTS, 8, cache)) == wanted
    assert not made
    assert rows(text_tokens(tokenizer, TEXTS, 4, cache)) == [row[:4] for row in wanted]
    assert rows(text_tokens(tokenizer, TEXTS[:-1], 8, cache)) == wanted[:-1]
    assert rows(text_tokens(tokenizer, TEXTS[::-1], 8, cache)) == wanted[::-1]
    assert len(made) == 3

    other = AutoTokenizer.from_pretrained(verified_folder(weights=False))
    add_item_tokens(other, ["<|it-[PAD]|>", "<|it-1|>"], 16_384)
    assert rows(text_tokens(other, TEXTS, 8, cache)) == wanted
    assert len(made) == 3  # an item's token is in no text
    other.add_tokens(["wooden"])
    assert rows(text_tokens(other, TEXTS, 8, cache)) != wanted
    assert len(made) == 4


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", "other"])
def test_a_damaged_file_is_made_anew(
    content: bytes | str, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = rows(text_tokens(tokenizer, TEXTS, 8, str(tmp_path)))
    (path,) = tmp_path.iterdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, values=np.zeros(3, dtype=np.int32), lengths=np.ones(len(TEXTS), dtype=int))
    assert rows(text_tokens(tokenizer, TEXTS, 8, str(tmp_path))) == wanted
    assert "is damaged" in caplog.text
    caplog.clear()
    assert rows(text_tokens(tokenizer, TEXTS, 8, str(tmp_path))) == wanted
    assert not caplog.text
