"""Backbones and vectors that are of no use."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe.lm import bundled
from tests.bad_input.stranger import ITEMS, Stranger


def test_a_folder_that_holds_no_decoder_is_refused(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    # transformers warns on the stderr that it found when it was imported.
    quiet = [logging.NullHandler()]
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", quiet)

    tiny = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(**tiny, intermediate_size=16)
    t5 = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    qwen = Qwen2Config(**tiny, num_key_value_heads=2, intermediate_size=16)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    Qwen2ForCausalLM(qwen).save_pretrained(tmp_path / "qwen")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("bert", "not a decoder-only"),
        ("t5", "not a decoder-only"),
        ("qwen", "no tokenizer that reads text"),
        ("empty", "configuration cannot be loaded"),
    ):
        assert said in stranger.refused("IDIOMoE", backbone=str(tmp_path / name))
    for name in ("t5", "qwen", "empty"):
        said = stranger.refused("IDIOMoE", text_encoder=str(tmp_path / name))
        assert "could not be loaded" in said


def test_the_bundled_decoder_is_read_quietly_and_its_place_is_not_kept(stranger: Stranger) -> None:
    folder = stranger.result("IDIOMoE", backbone="bundled")["folder"]
    config = (Path(folder) / "config.json").read_text()
    assert '"_name_or_path": "bundled"' in config and str(bundled.FOLDER) not in config


IDS = np.array([i for i, *_ in ITEMS])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        {"item_ids": IDS},
        {"item_ids": IDS, "vectors": np.ones(10)},
        {"item_ids": IDS, "vectors": np.ones((9, 4))},
        {"item_ids": IDS, "vectors": np.full((10, 4), np.nan)},
        {"item_ids": IDS[:, None], "vectors": np.ones((10, 4))},
        {"item_ids": IDS, "vectors": np.full((10, 4), "a")},
        {"item_ids": np.array(["q"]), "vectors": np.ones((1, 4))},
    ],
)
def test_a_bad_file_of_vectors_is_refused(content: Any, stranger: Stranger, tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    assert str(path) in stranger.refused("IDIOMoE", text_encoder=str(path))
