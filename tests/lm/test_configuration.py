from __future__ import annotations

import copy
import pickle

import pytest

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import IdiomoeConfig, expert_placement

from .decoders import LAYERS, VOCAB, config


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("none", []),
        ("first:2", [0, 1]),
        ("middle:3", [2, 3, 4]),
        ("middle:2", [2, 3]),
        ("last:2", [5, 6]),
        ("every:3", [0, 3, 6]),
        ([4, 1, 4], [1, 4]),
    ],
)
def test_placement(spec, layers):
    assert expert_placement(spec, 7) == layers


@pytest.mark.parametrize(
    "spec", ["", "some", "first", "first:", "first:0", "last:-1", "every:x", "last:8", [7], [-1]]
)
def test_bad_placement_is_one_line_that_shows_it(spec):
    with pytest.raises(SettingError) as error:
        expert_placement(spec, 7)
    assert repr(spec) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"item_num": 0},
        {"expert_width": 0.0},
        {"expert_width": 1.5},
        {"item_embedding_dim": 17},
        {"item_embedding_dim": 0},
        {"softmax": "both"},
        {"expert_layers": [LAYERS]},
    ],
)
def test_bad_sizes_are_refused(bad):
    with pytest.raises(SettingError, match=next(iter(bad))):
        IdiomoeConfig(**{"backbone_config": config("qwen2"), "item_num": 5, **bad})


def test_sizes_follow_the_backbone():
    sizes = IdiomoeConfig(backbone_config=config("gpt2"), item_num=5)
    assert (sizes.item_token_offset, sizes.vocab_size) == (VOCAB, VOCAB + 5)
    assert (sizes.hidden_size, sizes.num_hidden_layers) == (16, LAYERS)
    assert not hasattr(sizes, "sliding_window")  # GPT-2 has none, and the caches ask


def test_dictionary_copy_and_pickle_round_trip():
    sizes = IdiomoeConfig(backbone_config=config("llama"), item_num=5, expert_layers=[1])
    for again in (
        IdiomoeConfig.from_dict(sizes.to_dict()),
        copy.deepcopy(sizes),
        pickle.loads(pickle.dumps(sizes)),
    ):
        assert again.to_dict() == sizes.to_dict()
        assert again.backbone_config.model_type == "llama"


def test_a_live_backbone_keeps_its_attention():
    backbone_config = config("qwen2")
    backbone_config._attn_implementation = "sdpa"
    IdiomoeConfig(backbone_config=backbone_config, item_num=5)
    assert backbone_config._attn_implementation == "sdpa"
