"""Controls of IDIOMoE's size: where they start, and how near they come to its count."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional as F

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM

from .decoders import FAMILIES, ITEMS, decoder, mixed_batch
from .test_controls import build, stir

CAPACITY = ("wide_ffn", "append_blocks", "prepend_blocks", "lora")
FAMILY = pytest.mark.parametrize("family", FAMILIES)
IDENTITY = {"architecture_args": {"block_start": "identity"}}


def size(model):
    return sum(p.numel() for p in model.parameters())


def layers_of(model):
    trunk = model.backbone.base_model
    return next(m for m in trunk.children() if isinstance(m, torch.nn.ModuleList))


@pytest.mark.parametrize("architecture", CAPACITY)
@FAMILY
def test_the_start_is_the_dense_model_bit_for_bit(family, architecture):
    options = IDENTITY if architecture.endswith("blocks") else {}
    model, dense = build(architecture, family, **options), build("dense", family)
    tokens = mixed_batch()
    assert torch.equal(model(tokens).logits, dense(tokens).logits)
    # Not because nothing was added.
    assert not torch.equal(stir(model)(tokens).logits, stir(dense)(tokens).logits)


@pytest.mark.parametrize("architecture", ["append_blocks", "prepend_blocks"])
def test_random_blocks_change_what_comes_out(architecture):
    tokens = mixed_batch()
    model, dense = build(architecture), build("dense")
    assert (model(tokens).logits - dense(tokens).logits)[..., 1:31].abs().max() > 0.1
    std = torch.cat([block.mlp.up_proj.weight for block in model.added]).std()
    assert std.item() == pytest.approx(0.2, rel=0.15)  # the family's own initialiser


@pytest.mark.parametrize("width", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("architecture", CAPACITY)
@FAMILY
def test_counts_are_idiomoes_within_two_percent(family, architecture, width, caplog):
    """Counted on models that were really built; the two percent are of the layers alone."""
    options = {"expert_width": width}
    if architecture == "lora":
        options["expert_layers"] = "all"
    wanted = build("two_expert", family, **options)
    layers = sum(p.numel() for p in layers_of(wanted).parameters())
    caplog.set_level(logging.INFO)
    try:
        model = build(architecture, family, **options)
    except SettingError as refusal:
        # Blocks of one neuron and adapters of rank 1 are still too large, or too coarse.
        assert width < 1 or architecture == "lora"
        assert "widen the item experts" in str(refusal) and "\n" not in str(refusal)
        return
    gap = (size(model) - size(wanted)) / layers
    assert abs(gap) <= 0.02
    assert architecture != "wide_ffn" or gap == 0
    table = size(model.item_table)
    assert (
        f"{architecture}: {size(model) - table:,} parameters, IDIOMoE {size(wanted) - table:,}"
        in caplog.text
    )
    assert f"{100 * gap:+.2f}%" in caplog.text


def test_matching_is_possible_where_it_is_meant_to_be():
    """The test above would pass if everything were refused."""
    for family in FAMILIES:
        for architecture in CAPACITY:
            build(architecture, family)


def test_a_wide_ffn_is_one_ffn_with_more_neurons():
    model = stir(build("wide_ffn", expert_width=0.5))
    ffn = layers_of(model)[1].mlp
    gate, up, down = (
        torch.cat([getattr(part, name).weight for part in (ffn.ffn, ffn.extra)], dim)
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1))
    )
    assert gate.shape == (24 + 12, 16)
    states = torch.randn(2, 3, 16)
    wanted = (F.silu(states @ gate.T) * (states @ up.T)) @ down.T
    torch.testing.assert_close(ffn(states), wanted)


def test_an_adapter_is_its_projection_and_a_product_of_the_stated_rank():
    model = stir(build("lora"))
    rank = model.config.architecture_args["rank"]
    adapted = [m for m in model.modules() if hasattr(m, "lora_A")]
    assert len(adapted) == 7 * 3  # q, k, v, o, gate, up, down
    for module in adapted:
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        assert a.shape[0] == b.shape[1] == rank
        base = module.base_layer
        states = torch.randn(2, 3, base.in_features)
        wanted = F.linear(states, base.weight + 2 * b @ a, base.bias)
        torch.testing.assert_close(module(states), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("architecture", ["append_blocks", "prepend_blocks"])
def test_blocks_run_in_the_stated_order(architecture, family):
    backbone = decoder(family)
    old = list(next(m for m in backbone.base_model.children() if len(list(m.children())) == 3))
    model = IdiomoeForCausalLM.from_backbone(backbone, ITEMS, architecture=architecture)
    plan = model.config.architecture_args
    now = list(layers_of(model))
    new = model.added
    assert now == ([*old, *new] if architecture == "append_blocks" else [*new, *old])
    assert len(now) == 3 + plan["blocks"] == plan["depth"] == model.config.num_hidden_layers
    runs = []
    for layer in now:
        layer.register_forward_pre_hook(lambda layer, _: runs.append(layer))
    model(mixed_batch())
    assert runs == now
    attentions = [getattr(layer, "attn", None) or layer.self_attn for layer in now]
    assert [attention.layer_idx for attention in attentions] == list(range(len(now)))
    assert all(attention.config is model.config.backbone_config for attention in attentions)


@pytest.mark.parametrize(
    ("width", "blocks", "neurons"),
    [
        # 3 x 14 x 48 parameters are those of a block, 1984, but for 0.4% of all layers'.
        (14 / 24, 1, 24),
        # 3 x 24 x 48 are 1.74 blocks; two without 5 of their 24 neurons.
        (1.0, 2, 19),
    ],
)
def test_whole_blocks_are_taken_where_they_fit(width, blocks, neurons):
    plan = build("append_blocks", expert_width=width).config.architecture_args
    assert (plan["blocks"], plan["neurons"]) == (blocks, neurons)


@pytest.mark.parametrize("architecture", CAPACITY)
def test_without_experts_there_is_nothing_to_match(architecture):
    with pytest.raises(SettingError, match="without experts to match"):
        build(architecture, expert_layers="none")


@pytest.mark.parametrize("architecture", ["append_blocks", "prepend_blocks", "lora"])
def test_too_few_parameters_are_refused_in_one_line(architecture):
    with pytest.raises(SettingError, match="the 48 parameters that IDIOMoE adds") as error:
        build(architecture, expert_layers=[0], expert_width=0.01)
    assert "\n" not in str(error.value)


def test_an_unknown_start_of_blocks_is_refused():
    with pytest.raises(SettingError, match="block_start='zero'"):
        build("append_blocks", architecture_args={"block_start": "zero"})
