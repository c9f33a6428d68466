"""What holds for every architecture: saving, freezing, rates, caches, copies."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import ARCHITECTURES, IdiomoeForCausalLM

from .decoders import FAMILIES, ITEMS, VOCAB, decoder, mixed_batch, text_batch

ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)
FAMILY = pytest.mark.parametrize("family", FAMILIES)
# Part of the name of every weight that an architecture adds to the three layers of "qwen2".
ADDED = {
    "two_expert": ("item_expert",),
    "dense": (),
    "wide_ffn": (".extra.",),
    "append_blocks": ("layers.3.", "layers.4."),
    "prepend_blocks": ("layers.0.", "layers.1."),
    "lora": (".lora_A.", ".lora_B."),
    "moa": (".item.",),
    "mot": (".item.", "item_expert"),
    "switch": (".router.", ".experts.1."),
    "e4srec": (".lora_A.", ".lora_B."),
    "cove": (".lora_A.", ".lora_B."),
}
# Experts whose parameters adapters of a whole rank can match, for the tiny sizes here.
PLACEMENT = {("gpt2", "lora"): "first:2", ("gpt_neox", "lora"): "first:2"}


def build(architecture, family="qwen2", **options):
    options = {"expert_init": "random", "seed": 1, **options}
    options.setdefault("expert_layers", PLACEMENT.get((family, architecture), "all"))
    return IdiomoeForCausalLM.from_backbone(
        decoder(family), ITEMS, architecture=architecture, **options
    )


def stir(model):
    """Weights moved a little, so that none is at a start that hides what it does."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "item_table.rows":
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        model.item_table.rows[1:].normal_(generator=generator)
    return model


@ARCHITECTURE
@FAMILY
def test_a_saved_folder_opens_with_the_same_logits(family, architecture, tmp_path):
    model = stir(build(architecture, family))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is IdiomoeForCausalLM and not again.training
    assert again.config.architecture_args == model.config.architecture_args
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokens = mixed_batch()
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("architecture", ["append_blocks", "lora", "switch"])
def test_what_was_opened_can_be_saved_again(architecture, tmp_path):
    model = stir(build(architecture))
    tokens = mixed_batch()
    wanted = model(tokens).logits
    for turn in ("one", "two"):
        model.save_pretrained(tmp_path / turn)
        model = IdiomoeForCausalLM.from_pretrained(tmp_path / turn)
    torch.testing.assert_close(model(tokens).logits, wanted)
    assert [p.name for p in (tmp_path / "two").glob("*adapter*")] == []


def test_a_folder_from_before_there_were_architectures_opens_as_idiomoe(tmp_path):
    model = build("two_expert")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config.pop("architecture", None), config.pop("architecture_args", None)
    path.write_text(json.dumps(config))
    again = IdiomoeForCausalLM.from_pretrained(tmp_path)
    tokens = mixed_batch()
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def kind(name, architecture):
    """What a weight is, told from its name alone: independent of the code under test."""
    if name.startswith("item_table") or any(part in name for part in ADDED[architecture]):
        return "new"
    if ".self_attn." in name:
        return "attention"
    if "norm" in name:
        return "shared"
    return "ffn" if ".mlp." in name else "vocabulary"


TRAINS = {
    "none": {"new", "shared", "attention", "ffn", "vocabulary"},
    "backbone": {"new"},
    "text_expert": {"new", "shared", "attention"},
    "attention": {"new", "shared", "ffn", "vocabulary"},
}


@ARCHITECTURE
@pytest.mark.parametrize("policy", TRAINS)
def test_gradients_flow_where_the_policy_says_and_nowhere_else(policy, architecture):
    model = build(architecture).train()
    model.freeze("backbone")  # an earlier policy must leave no trace
    model.freeze(policy)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0, 1e-2))
    tokens = mixed_batch(4)
    for _ in range(3):  # behind a zero matrix, gradients arrive at the second step
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if kind(n, architecture) in TRAINS[policy]}


@ARCHITECTURE
def test_what_is_new_has_the_rate_of_what_is_new(architecture):
    model = build(architecture)
    groups = model.parameter_groups(0.1, 1e-3, 1e-5)
    listed = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in listed}) == len(listed) == len(list(model.parameters()))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (1e-3 if kind(name, architecture) == "new" else 1e-5), name


@ARCHITECTURE
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_cache_equals_the_full_pass(family, architecture):
    model = stir(build(architecture, family))
    tokens = mixed_batch(2, 9)
    cache = DynamicCache(config=model.config)
    pieces = [
        model(tokens[:, start:stop], past_key_values=cache, use_cache=True).logits
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9))
    ]
    wanted = model(tokens).logits
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert model.generate(tokens, vocabulary="item", **options).shape == (2, 12)


@ARCHITECTURE
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_work_and_train_by_themselves(clone, architecture):
    model = stir(build(architecture, dropout=0.1))
    again = clone(model)
    tokens = mixed_batch()
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits)
    again.freeze("backbone")
    trained = {n for n, p in again.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in again.named_parameters() if kind(n, architecture) == "new"}
    assert all(p.requires_grad for p in model.parameters())


@ARCHITECTURE
def test_building_is_seeded_and_items_start_alike_everywhere(architecture):
    state = torch.get_rng_state()
    one, two, other = (build(architecture, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    added = [name for name in one.state_dict() if kind(name, architecture) == "new"]
    assert any(not torch.equal(one.state_dict()[n], other.state_dict()[n]) for n in added)
    if architecture not in ("e4srec", "cove"):  # they have tables of other kinds
        assert torch.equal(one.item_table.rows, build("two_expert", seed=1).item_table.rows)


@ARCHITECTURE
def test_ffn_outputs_are_dropped_as_idiomoes_are(architecture):
    """In the layer that has an expert alone, and in training alone."""
    width = 0.6 if architecture == "lora" else 1.0  # as much as adapters of rank 1
    model = build(architecture, expert_layers=[1], dropout=0.5, expert_width=width)
    at = 1 + (model.config.architecture_args["blocks"] if architecture == "prepend_blocks" else 0)
    ffns = [layer.mlp for layer in model.backbone.model.layers]
    states = torch.randn(1, 4, 16)

    def dropped(ffn):
        return bool((ffn(states) == 0).any())

    own = range(at - 1, at + 2)
    assert not any(dropped(ffn) for ffn in ffns)
    model.train()
    assert [dropped(ffns[layer]) for layer in own] == [False, True, False]
    assert all(dropped(ffn) for n, ffn in enumerate(ffns) if n not in own)  # added blocks


@ARCHITECTURE
def test_half_precision_survives_saving(architecture, tmp_path):
    backbone = decoder().to(torch.bfloat16)
    model = IdiomoeForCausalLM.from_backbone(backbone, ITEMS, architecture=architecture)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.isfinite(again(text_batch()).logits[..., :VOCAB]).all()


@ARCHITECTURE
def test_bfloat16_autocast_runs(architecture):
    model = build(architecture).train()
    tokens = mixed_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(SettingError, match="'three_expert' is not one of two_expert, dense"):
        build("three_expert")
