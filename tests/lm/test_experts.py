from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from recbole_idiomoe.base.errors import BackboneError, SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM, TwoExpertFFN, decoder_layers, make_item_expert
from recbole_idiomoe.lm.decoder import LAYOUTS, ffn_layout

from .decoders import FAMILIES, LAYERS, decoder


def text_ffn(family):
    return decoder_layers(decoder(family))[0].mlp


def neurons(ffn):
    """Activations that enter the output projection, and its value vectors, (m, d)."""
    _, outer = ffn_layout(ffn)
    weight = getattr(ffn, outer).weight
    values = weight if "Conv1D" in type(getattr(ffn, outer)).__name__ else weight.T
    return values.detach(), getattr(ffn, outer)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_width_is_an_exact_and_separate_copy(family):
    ffn = text_ffn(family).requires_grad_(False)
    expert = make_item_expert(ffn, 1.0)
    hidden = torch.randn(2, 5, 16)
    assert torch.equal(expert(hidden), ffn(hidden))
    assert all(p.requires_grad for p in expert.parameters())
    shared = {p.data_ptr() for p in ffn.parameters()} & {p.data_ptr() for p in expert.parameters()}
    assert not shared


@pytest.mark.parametrize("family", FAMILIES)
def test_narrowing_keeps_the_strongest_neurons(family):
    """The narrow expert equals the wide one with the weak value vectors set to zero."""
    ffn = text_ffn(family)
    values, _ = neurons(ffn)
    expert = make_item_expert(ffn, 0.25)
    kept_values, projection = neurons(expert)
    assert kept_values.shape == (6, 16)
    strongest = values.norm(dim=1).argsort(descending=True)[:6].sort().values
    assert torch.equal(kept_values, values[strongest])
    assert 6 in (getattr(projection, "in_features", 0), getattr(projection, "nx", 0))
    weak = torch.ones(24, dtype=torch.bool)
    weak[strongest] = False
    with torch.no_grad():
        values[weak] = 0  # a view of the weight
    hidden = torch.randn(2, 5, 16)
    torch.testing.assert_close(expert(hidden), ffn(hidden))


@pytest.mark.parametrize(("width", "count"), [(0.5, 12), (0.125, 3), (0.01, 1)])
def test_width_rounds_and_is_at_least_one(width, count):
    expert = make_item_expert(text_ffn("qwen2"), width)
    assert expert.gate_proj.out_features == expert.intermediate_size == count
    assert expert(torch.randn(1, 2, 16)).shape == (1, 2, 16)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_random_experts_follow_the_seed_and_the_spread(family):
    ffn = text_ffn(family)
    with torch.no_grad():
        for parameter in ffn.parameters():
            parameter.add_(1.0)
    a, b, c = (
        make_item_expert(ffn, 1.0, "random", torch.Generator().manual_seed(s), std=0.5)
        for s in (1, 1, 2)
    )
    _, outer = ffn_layout(ffn)
    weights = [getattr(x, outer).weight for x in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert weights[0].std().item() == pytest.approx(0.5, rel=0.15)
    assert not getattr(a, outer).bias.any()


def test_unknown_init_is_refused():
    with pytest.raises(SettingError, match="'zero'"):
        make_item_expert(text_ffn("qwen2"), 1.0, "zero")


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_sit_where_they_were_placed_around_the_original(family):
    backbone = decoder(family)
    originals = [layer.mlp for layer in decoder_layers(backbone)]
    IdiomoeForCausalLM.from_backbone(backbone, 4, expert_layers="last:2", expert_width=0.5)
    found = [layer.mlp for layer in decoder_layers(backbone)]
    assert [isinstance(ffn, TwoExpertFFN) for ffn in found] == [False, True, True]
    assert found[0] is originals[0]
    assert [ffn.text_expert for ffn in found[1:]] == originals[1:]
    assert len(found) == LAYERS


def test_expert_dropout_acts_in_training_only():
    backbone = decoder()
    model = IdiomoeForCausalLM.from_backbone(backbone, 4, dropout=0.5)
    ffn = decoder_layers(backbone)[0].mlp
    hidden = torch.randn(1, 4, 16)
    assert torch.equal(ffn(hidden), ffn.text_expert(hidden))
    model.train()
    assert (ffn(hidden) == 0).float().mean() > 0.2


def _small(config_class, **extra):
    return config_class(
        **{
            "vocab_size": 31,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            **extra,
        }
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: BertLMHeadModel(_small(BertConfig)),
        lambda: OPTForCausalLM(_small(OPTConfig, ffn_dim=24, word_embed_proj_dim=16)),
        lambda: BloomForCausalLM(_small(BloomConfig)),
        lambda: Gemma2ForCausalLM(_small(Gemma2Config, num_key_value_heads=2, head_dim=8)),
    ],
    ids=["bert", "opt", "bloom", "gemma2"],
)
@pytest.mark.parametrize("layers", ["all", "none"])
def test_other_builds_are_refused_in_one_line(build, layers):
    backbone = build()
    with pytest.raises(BackboneError) as error:
        IdiomoeForCausalLM.from_backbone(backbone, 4, expert_layers=layers)
    assert repr(backbone.config.model_type) in str(error.value)
    assert "\n" not in str(error.value)


def test_layout_table_has_no_duplicates():
    assert len({outer for _, outer in LAYOUTS}) == len(LAYOUTS)
