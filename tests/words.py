"""A small vocabulary: where text is learnt, most of the time goes into the softmax over it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recbole_idiomoe.lm import bundled
from recbole_idiomoe.lm.vocabulary import train_tokenizer

WORDS = 1000


@contextmanager
def few_words(folder: Path) -> Iterator[None]:
    """Inside, ``untrained`` has 1000 tokens, which lie in ``folder``, not idiom-mini's 16,384."""
    card = (bundled.FOLDER / "README.md").read_text(encoding="utf-8")
    tokenizer = train_tokenizer([card], WORDS)
    tokenizer.save_pretrained(folder)
    config = json.loads((bundled.FOLDER / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    (folder / bundled.WEIGHTS_FILE).touch()
    sums = (
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in bundled.NEEDED
    )
    (folder / bundled.SUMS_FILE).write_text("".join(sums))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "FOLDER", folder)
        yield
