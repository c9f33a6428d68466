from __future__ import annotations

import copy
import json
import logging
import pathlib
import pickle
import time

import pytest
import torch
from transformers import (
    AutoConfig,
    BertConfig,
    BertLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from recbole_idiomoe.base.errors import BackboneError, SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM, encode_text, load_backbone
from recbole_idiomoe.lm import backbone as backbone_module
from recbole_idiomoe.lm.vocabulary import train_tokenizer

from .decoders import decoder

BARE_TOKENIZER = train_tokenizer([], 257)


def test_an_untrained_decoder_is_seeded_and_says_that_it_is_not_pretrained(caplog):
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, logger="recbole_idiomoe.lm.backbone"):
        (a, tokens), (b, again), (c, _) = (load_backbone("untrained", seed=s) for s in (0, 0, 1))
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == 3
    assert "not pretrained" in caplog.records[0].message
    assert torch.equal(state, torch.get_rng_state())
    assert tokens.get_vocab() == again.get_vocab()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.get_input_embeddings().weight, c.get_input_embeddings().weight)
    assert a.config.vocab_size == len(tokens) and not a.training
    assert a.get_output_embeddings().weight is a.get_input_embeddings().weight


def test_untrained_sizes_can_be_given():
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 4}
    backbone, _ = load_backbone("untrained", backbone_args=sizes)
    assert {k: getattr(backbone.config, k) for k in sizes} == sizes
    assert len(backbone.model.layers) == len(backbone.config.layer_types) == 3


@pytest.mark.parametrize(
    ("name", "sizes", "shown"),
    [
        ("untrained", {"hiden_size": 32}, "'hiden_size'"),
        ("untrained", {"vocab_size": 32}, "'vocab_size'"),
        ("untrained", {"hidden_size": "wide"}, "wide"),
        ("untrained", {"hidden_size": 30, "num_attention_heads": 4}, "30"),
        ("some/model", {"hidden_size": 32}, "some/model"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(name, sizes, shown):
    with pytest.raises(SettingError) as error:
        load_backbone(name, backbone_args=sizes)
    assert shown in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path):
    backbone = decoder("llama")
    backbone.generation_config.update(do_sample=True, top_k=20, eos_token_id=3)
    backbone.to(torch.bfloat16).save_pretrained(tmp_path)
    BARE_TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_loaded_in_float32_without_its_sampling_habits(folder):
    backbone, tokenizer = load_backbone(str(folder))
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
        load_backbone(str(name))
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


class Pickled:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return pathlib.Path.touch, (self.trace,)


@pytest.mark.parametrize("kind", ["one file", "shards", "shards as safetensors", "as an adapter"])
def test_pickled_weights_are_never_read(kind, folder, tmp_path_factory, monkeypatch):
    trace = tmp_path_factory.mktemp("trace") / "ran"
    read = []
    monkeypatch.setattr(torch, "load", lambda *args, **options: read.append(args))
    (folder / "model.safetensors").unlink()
    name = "adapter_model.bin" if kind == "as an adapter" else "pytorch_model.bin"
    (folder / name).write_bytes(pickle.dumps(Pickled(trace)))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    if kind == "shards":
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif kind == "shards as safetensors":
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "as an adapter":
        config = json.loads((folder / "config.json").read_text())
        config["transformers_weights"] = name
        (folder / "config.json").write_text(json.dumps(config))
    message = refused(folder)
    assert "pickled" in message and "save_pretrained" in message
    assert not read and not trace.exists()


def test_pickled_weights_on_the_hub_are_refused_and_not_converted(monkeypatch):
    """transformers would ask a service of the hub to publish a conversion."""
    asked = []
    monkeypatch.setattr(backbone_module, "_locate", lambda name: (name, False))
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *a, **o: decoder("llama").config)
    monkeypatch.setattr(backbone_module, "has_file", lambda source, file, **o: asked.append(file))
    assert "pickled" in refused("some/model")
    assert asked == ["model.safetensors", "model.safetensors.index.json"]


def test_safetensors_in_shards_are_read(folder):
    whole, _ = load_backbone(str(folder))
    whole.save_pretrained(folder, max_shard_size="4KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    again, _ = load_backbone(str(folder))
    pairs = zip(whole.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_folder_without_a_head_is_refused(tmp_path):
    """A bare trunk would get a random head."""
    decoder("llama").base_model.save_pretrained(tmp_path)
    BARE_TOKENIZER.save_pretrained(tmp_path)
    assert "lm_head" in refused(tmp_path)
