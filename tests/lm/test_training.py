from __future__ import annotations

import pytest
import torch

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers
from recbole_idiomoe.lm.training import checkpoint_blocks

from .decoders import FAMILIES, ITEMS, decoder, mixed_batch

POLICIES = ("none", "backbone", "text_expert", "attention")


def build(family):
    return IdiomoeForCausalLM.from_backbone(
        decoder(family), ITEMS, item_embedding_dim=5, expert_layers=[0, 2]
    )


def kind(name):
    """What a weight is, told from its name alone: independent of the code under test."""
    if "item_expert" in name or "item_table" in name:
        return "item"
    if any(part in name for part in (".self_attn.", ".attn.", ".attention.")):
        return "attention"
    if "norm" in name or ".ln_" in name or ".wpe." in name:
        return "shared"
    if "mlp" in name:
        return "text_expert"
    if any(part in name for part in ("embed", "lm_head", "wte")):
        return "vocabulary"
    raise KeyError(name)


TRAINS = {
    "none": {"item", "shared", "attention", "text_expert", "vocabulary"},
    "backbone": {"item"},
    "text_expert": {"item", "shared", "attention"},
    "attention": {"item", "shared", "text_expert", "vocabulary"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_exactly_the_stated_weights_move(family, policy):
    model = build(family).train()
    model.freeze("backbone")  # an earlier policy must leave no trace
    model.freeze(policy)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1, 1e-2))
    tokens = mixed_batch()
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if kind(n) in TRAINS[policy]}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (kind(name) in TRAINS[policy]), name


def test_an_unknown_policy_is_refused():
    with pytest.raises(SettingError, match="'all'"):
        build("qwen2").freeze("all")


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_hold_each_weight_once_with_its_rate_and_decay(family):
    model = build(family)
    groups = model.parameter_groups(0.1, 1e-3, 1e-5)
    listed = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in listed}) == len(listed) == len(list(model.parameters()))
    settings = {id(p): g for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        group = settings[id(parameter)]
        assert group["lr"] == (1e-3 if kind(name) == "item" else 1e-5), name
        tied = model.config.backbone_config.tie_word_embeddings
        plain = (
            parameter.ndim < 2
            or name == "item_table.rows"
            or any(part in name for part in ("embed", "wte", "wpe"))
            or ("lm_head" in name and tied)
        )
        assert group["weight_decay"] == (0.0 if plain else 0.1), name


def test_groups_leave_frozen_weights_out_and_share_one_rate_by_default():
    model = build("qwen2")
    model.freeze("backbone")
    assert {g["name"] for g in model.parameter_groups(0.1, 1e-3)} == {"new/decayed", "new/plain"}
    model.freeze("none")
    assert {g["lr"] for g in model.parameter_groups(0.1, 1e-3)} == {1e-3}
    assert [g["lr"] for g in model.parameter_groups(0.1, 1e-3, 0.0) if "pre" in g["name"]] == [0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_are_computed_again_give_the_same_gradients(family):
    tokens = mixed_batch()
    model = build(family).train()
    runs = []
    decoder_layers(model.backbone)[0].register_forward_hook(lambda *_: runs.append("block"))
    attention_of(decoder_layers(model.backbone)[0]).register_forward_hook(
        lambda *_: runs.append("attention")
    )

    def gradients():
        runs.clear()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    wanted = {name: gradient.clone() for name, gradient in gradients().items()}
    assert runs == ["attention", "block"]
    checkpoint_blocks(model.backbone)
    torch.testing.assert_close(gradients(), wanted)
    assert runs == ["attention", "block", "attention"]  # what hangs on a block does not run again
    with torch.no_grad():
        assert model.generate(tokens[:, :3], max_new_tokens=2).shape == (len(tokens), 5)
