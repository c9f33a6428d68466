from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.lm.vocabulary import train_tokenizer
from recbole_idiomoe.pretrain.corpus import Windows, hold_out, pack, read_texts

TEXTS = ["One\r\ntext, café.\n", "Two\n", "  three\x1e in a line\n"]


@pytest.mark.parametrize("suffix", ["txt", "txt.xz", "txt.gz"])
def test_texts_come_back_as_written(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"some.{suffix}"
    raw = (TEXTS[0] + "\x1e\r\n" + "\x1e\n".join([*TEXTS[1:], " \n"])).encode()
    pressed = {"txt": bytes, "txt.xz": lzma.compress, "txt.gz": gzip.compress}[suffix](raw)
    file.write_bytes(pressed)
    assert read_texts(str(file)) == TEXTS


@pytest.mark.parametrize(
    ("content", "shown"),
    [(b"\xff\xfe\x00", "UTF-8"), (b" \n\x1e\n\n", "holds no text"), (None, "No such file")],
)
def test_what_is_no_text_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, shown: str
) -> None:
    file = tmp_path / "some.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_texts(str(file))
    assert shown in str(error.value) and "some.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    for name in ("cut.txt.xz", "cut.txt.gz"):
        whole = (lzma if name.endswith("xz") else gzip).compress(b"text " * 100)
        for broken in (whole[:-12], whole[:20] + b"\xff\xff\xff\xff" + whole[24:]):
            (tmp_path / name).write_bytes(broken)
            with pytest.raises(DataError, match=name):
                read_texts(str(tmp_path / name))


def test_held_out_texts_are_a_seeded_share_and_the_rest_keeps_its_order() -> None:
    texts = [f"text {i}" for i in range(200)]
    kept, held = hold_out(texts, 0.02, seed=1)
    assert len(held) == 4 and sorted([*kept, *held]) == sorted(texts)
    assert kept == [text for text in texts if text not in held]
    assert hold_out(texts, 0.02, seed=1)[1] == held != hold_out(texts, 0.02, seed=2)[1]
    assert len(hold_out(texts[:3], 0.01, seed=1)[1]) == 1
    with pytest.raises(DataError, match=r"U\+001E"):
        hold_out(texts[:1], 0.01, seed=1)


def test_packed_texts_are_separated_by_the_end_of_text() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    tokens = pack(tokenizer, TEXTS)
    end = tokenizer.eos_token_id
    assert tokens.dtype == np.uint16 and tokens[0] == tokens[-1] == end
    parts = np.split(tokens, np.flatnonzero(tokens == end))[1:-1]
    assert [tokenizer.decode(part[1:]) for part in parts] == TEXTS


def test_an_epoch_shows_each_window_once_and_every_epoch_differs() -> None:
    tokens = np.arange(1003, dtype=np.uint16)
    windows = Windows(tokens, context=10, batch_size=9, seed=5)
    assert windows.window_num == 99 and windows.steps_per_epoch == 11
    first, second = (
        np.concatenate([b.numpy() for b in windows.batches(11 * e, 11 * (e + 1))]) for e in (0, 1)
    )
    for epoch in (first, second):
        assert epoch.shape == (99, 11) and (np.diff(epoch, axis=1) == 1).all()
        starts = np.sort(epoch[:, 0])
        assert (np.diff(starts) == 10).all() and starts[0] < 10
    assert not np.array_equal(first, second)
    assert first[0, 0] % 10 != second[0, 0] % 10


def test_batches_from_the_middle_are_those_of_the_whole() -> None:
    windows = Windows(np.arange(503, dtype=np.uint16), context=10, batch_size=8, seed=5)
    whole = [b.tolist() for b in windows.batches(0, 20)]
    assert windows.steps_per_epoch == 6
    assert [b.tolist() for b in windows.batches(7, 20)] == whole[7:]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="do not fill a batch of 8 windows of 10"):
        Windows(np.arange(80, dtype=np.uint16), context=10, batch_size=8, seed=0)
