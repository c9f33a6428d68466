from __future__ import annotations

import copy
import json
import logging
import time
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from recbole_idiomoe.errors import BackboneError, SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM, encode_text, load_backbone

from .decoders import decoder

CORPUS = ["title: Café 2000 shampoo, category: Hair", "title: 日本語 tea", "it's 1,234.5 ml"] * 5
_, TOKENIZER = load_backbone("bundled", corpus=CORPUS)
_, BARE_TOKENIZER = load_backbone("bundled", corpus=[])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_bundled_tokenizer_round_trips_any_text(text):
    for tokenizer in (TOKENIZER, BARE_TOKENIZER):
        [ids] = encode_text(tokenizer, [text])
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_bundled_tokenizer_learns_words_and_splits_digits():
    assert len(TOKENIZER) <= 4096 and len(BARE_TOKENIZER) == 257
    words = TOKENIZER.convert_ids_to_tokens(encode_text(TOKENIZER, [" shampoo 2000"])[0])
    assert words[0] == "Ġshampoo" and words[-4:] == ["2", "0", "0", "0"]
    assert TOKENIZER.eos_token == TOKENIZER.pad_token == "<|endoftext|>"
    assert len(encode_text(TOKENIZER, ["shampoo"])[0]) < len(
        encode_text(BARE_TOKENIZER, ["shampoo"])[0]
    )


def test_bundled_decoder_is_seeded_and_says_that_it_is_not_pretrained(caplog):
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, logger="recbole_idiomoe.lm.backbone"):
        (a, tokens), (b, again), (c, _) = (
            load_backbone("bundled", corpus=CORPUS, seed=s) for s in (0, 0, 1)
        )
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == 3
    assert "not pretrained" in caplog.records[0].message
    assert torch.equal(state, torch.get_rng_state())
    assert tokens.get_vocab() == again.get_vocab()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.get_input_embeddings().weight, c.get_input_embeddings().weight)
    assert a.config.vocab_size == len(tokens) and not a.training
    assert a.get_output_embeddings().weight is a.get_input_embeddings().weight


def test_bundled_sizes_can_be_given():
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 2}
    backbone, _ = load_backbone("bundled", corpus=[], backbone_args=sizes)
    assert {k: getattr(backbone.config, k) for k in sizes} == sizes


@pytest.mark.parametrize(
    ("name", "sizes", "shown"),
    [
        ("bundled", {"hiden_size": 32}, "'hiden_size'"),
        ("bundled", {"vocab_size": 32}, "'vocab_size'"),
        ("bundled", {"hidden_size": "wide"}, "wide"),
        ("bundled", {"hidden_size": 30, "num_attention_heads": 4}, "30"),
        ("some/model", {"hidden_size": 32}, "some/model"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(name, sizes, shown):
    with pytest.raises(SettingError) as error:
        load_backbone(name, corpus=[], backbone_args=sizes)
    assert shown in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path):
    backbone = decoder("llama")
    backbone.generation_config.update(do_sample=True, top_k=20, eos_token_id=3)
    backbone.to(torch.bfloat16).save_pretrained(tmp_path)
    BARE_TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_loaded_in_float32_without_its_sampling_habits(folder):
    backbone, tokenizer = load_backbone(str(folder), corpus=[])
    assert backbone.dtype == torch.float32 and not backbone.training
    assert encode_text(tokenizer, ["a"]) == encode_text(BARE_TOKENIZER, ["a"])
    habits = backbone.generation_config
    assert (habits.eos_token_id, habits.do_sample, habits.top_k) == (3, None, None) or (
        habits.eos_token_id == 3 and not habits.do_sample and habits.top_k != 20
    )
    tokens = torch.tensor([[1, 2, 3]])
    wanted = copy.deepcopy(backbone)(tokens).logits
    model = IdiomoeForCausalLM.from_backbone(backbone, 5)
    assert torch.equal(model(tokens).logits[..., :31], wanted)


def refused(name):
    start = time.perf_counter()
    with pytest.raises(BackboneError) as error:
        load_backbone(str(name), corpus=[])
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    assert time.perf_counter() - start < 15
    return message


def test_encoders_are_refused(tmp_path):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    bert = BertConfig(hidden_size=16, intermediate_size=16, **sizes)
    BertLMHeadModel(bert).save_pretrained(tmp_path / "bert")
    t5 = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=300)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    for kind in ("bert", "t5"):
        BARE_TOKENIZER.save_pretrained(tmp_path / kind)
        message = refused(tmp_path / kind)
        assert repr(kind) in message and "Qwen2" in message


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a b", "one/two/three", ""])
def test_a_missing_folder_is_refused(name):
    message = refused(name)
    assert "no such folder" in message and name in message


def test_an_unreachable_hub_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("nobody/no-such-model")
    assert "hf download nobody/no-such-model" in message and "bundled" in message


def test_a_folder_that_lacks_a_part_is_refused(folder, tmp_path_factory):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "tokenizer" in refused(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert "model" in refused(folder)
    weights.unlink()
    assert "model" in refused(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    assert "configuration" in refused(folder)
    assert "configuration" in refused(tmp_path_factory.mktemp("empty"))


def test_a_folder_without_a_head_is_refused(tmp_path):
    """A bare trunk would get a random head."""
    decoder("llama").base_model.save_pretrained(tmp_path)
    BARE_TOKENIZER.save_pretrained(tmp_path)
    assert "lm_head" in refused(tmp_path)
