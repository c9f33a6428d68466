"""MoA, MoT and learned routing against plain code that takes one token at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from recbole_idiomoe.base.errors import BackboneError, SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM, TwoExpertFFN
from recbole_idiomoe.lm.routing import TokenRouting, routed
from recbole_idiomoe.lm.variants.by_type import ByTokenType
from recbole_idiomoe.lm.variants.switch import SwitchFFN

from .decoders import FAMILIES, ITEMS, VOCAB, config, decoder, mixed_batch, text_batch
from .test_controls import build, stir

FAMILY = pytest.mark.parametrize("family", FAMILIES)
BY_TYPE = pytest.mark.parametrize("architecture", ["moa", "mot"])


def chosen(module, is_item):
    if isinstance(module, ByTokenType):
        return module.item if is_item else module.text
    if isinstance(module, TwoExpertFFN):
        return module.item_expert if is_item else module.text_expert
    return module


def turned(vector, position, theta):
    """Rotary embedding of one head at one position."""
    half = len(vector) // 2
    out = vector.clone()
    for pair in range(half):
        angle = position / theta ** (2 * pair / len(vector))
        a, b = vector[pair], vector[pair + half]
        out[pair] = a * math.cos(angle) - b * math.sin(angle)
        out[pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def by_hand(model, tokens):
    """Final states of one Qwen2 sequence, token by token and head by head."""
    sizes = model.config.backbone_config
    heads, groups = sizes.num_attention_heads, sizes.num_key_value_heads
    width, theta = sizes.hidden_size // heads, sizes.rope_parameters["rope_theta"]
    items = [token >= VOCAB for token in tokens.tolist()]
    trunk = model.backbone.model
    factor = model.config.item_input_factor
    states = [
        factor * model.item_table.rows[token - VOCAB] if item else trunk.embed_tokens.weight[token]
        for token, item in zip(tokens.tolist(), items, strict=True)
    ]
    for layer in trunk.layers:
        attention = layer.self_attn
        queries, keys, values = [], [], []
        for position, (state, item) in enumerate(zip(states, items, strict=True)):
            normed = chosen(layer.input_layernorm, item)(state)
            q = chosen(attention.q_proj, item)(normed).view(heads, width)
            k = chosen(attention.k_proj, item)(normed).view(groups, width)
            queries.append([turned(head, position, theta) for head in q])
            keys.append([turned(head, position, theta) for head in k])
            values.append(chosen(attention.v_proj, item)(normed).view(groups, width))
        for position, item in enumerate(items):
            found = []
            for head in range(heads):
                group = head // (heads // groups)
                scores = torch.stack(
                    [queries[position][head] @ keys[s][group] for s in range(position + 1)]
                )
                weights = (scores / math.sqrt(width)).softmax(0)
                found.append(sum(w * values[s][group] for s, w in enumerate(weights)))
            state = states[position] + chosen(attention.o_proj, item)(torch.cat(found))
            normed = chosen(layer.post_attention_layernorm, item)(state)
            states[position] = state + chosen(layer.mlp, item)(normed)
    return torch.stack(
        [chosen(trunk.norm, item)(state) for state, item in zip(states, items, strict=True)]
    )


@pytest.mark.parametrize("placement", ["all", [1]])
@BY_TYPE
@torch.no_grad()
def test_each_token_runs_through_what_is_its_types(architecture, placement):
    model = stir(build(architecture, expert_layers=placement, expert_width=0.5))
    tokens = mixed_batch(1, 6)
    got = model.hidden_states(tokens).last_hidden_state[0]
    torch.testing.assert_close(got, by_hand(model, tokens[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "inner"), [("qwen2", ()), ("qwen3", ("q_norm", "k_norm"))])
def test_each_design_has_two_of_what_its_name_says_and_one_of_the_rest(family, inner):
    found = {}
    for architecture in ("moa", "mot"):
        model = build(architecture, family, expert_layers=[1])
        pairs = (ByTokenType, TwoExpertFFN)
        names = [n for n, m in model.backbone.model.named_modules() if isinstance(m, pairs)]
        found[architecture] = {name.removeprefix("layers.1.") for name in names}
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    assert found["moa"] == attention
    norms = {"input_layernorm", "post_attention_layernorm", "norm"}
    norms |= {f"self_attn.{name}" for name in inner}
    assert found["mot"] == attention | norms | {"mlp"}


@BY_TYPE
@FAMILY
def test_text_alone_is_the_backbone_bit_for_bit(family, architecture):
    backbone = decoder(family)
    untouched = copy.deepcopy(backbone)
    model = IdiomoeForCausalLM.from_backbone(
        backbone, ITEMS, architecture=architecture, expert_init="random"
    )
    with torch.no_grad():
        for module in model.added:
            for parameter in module.parameters():
                parameter.normal_()
    tokens = text_batch()
    assert torch.equal(model(tokens).logits[..., :VOCAB], untouched(tokens).logits)


@BY_TYPE
@FAMILY
def test_copies_change_nothing_until_they_train(family, architecture):
    tokens = mixed_batch()
    model, dense = build(architecture, family, expert_init="copy"), build("dense", family)
    torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, atol=1e-5, rtol=0)


@BY_TYPE
def test_text_is_reached_by_items_through_attention_alone(architecture):
    """One global causal attention: an item changes the text after it, not the text before."""
    model = stir(build(architecture))
    tokens = mixed_batch(1, 6)  # items at 1 and 4
    states = model.hidden_states(tokens).last_hidden_state[0]
    with torch.no_grad():
        for module in model.added:
            for parameter in module.parameters():
                parameter.add_(0.5)
    changed = (model.hidden_states(tokens).last_hidden_state[0] - states).abs().amax(-1) > 1e-4
    assert changed.tolist() == [False, True, True, True, True, True]


def test_a_norm_that_mixes_positions_is_refused():
    sizes = config("phi")
    sizes.qk_layernorm = True
    backbone = type(decoder("phi"))(sizes)
    with pytest.raises(BackboneError, match="'q_layernorm' in its attention") as error:
        IdiomoeForCausalLM.from_backbone(backbone, ITEMS, architecture="mot")
    assert "\n" not in str(error.value)


def switches(model):
    return [module for module in model.modules() if isinstance(module, SwitchFFN)]


@torch.no_grad()
def test_a_token_goes_to_the_expert_of_its_larger_score():
    model = stir(build("switch", expert_width=0.5))
    ffn = switches(model)[1]
    states = torch.randn(3, 5, 16)
    wanted, went = torch.empty_like(states), []
    for row in range(3):
        for column in range(5):
            state = states[row, column]
            scores = [float(state @ weight) for weight in ffn.router.weight]
            best = scores.index(max(scores))
            share = math.exp(scores[best]) / sum(map(math.exp, scores))
            wanted[row, column] = 2 * share * ffn.experts[best](state)
            went.append(best)
    assert 0 < sum(went) < 15
    torch.testing.assert_close(ffn(states), wanted, atol=1e-5, rtol=1e-5)


def test_a_routers_choice_does_not_know_types():
    model = stir(build("switch"))
    embedded = torch.randn(2, 6, 16)
    found = []
    for types in (torch.zeros(2, 6), torch.ones(2, 6)):
        with routed(TokenRouting(types)):
            found.append(model.backbone.model(inputs_embeds=embedded).last_hidden_state)
    assert torch.equal(*found)


def test_undecided_routers_start_from_the_dense_model():
    model, dense = build("switch", expert_init="copy"), build("dense")
    with torch.no_grad():
        for ffn in switches(model):
            ffn.router.weight.zero_()
    tokens = mixed_batch()
    torch.testing.assert_close(model(tokens).logits, dense(tokens).logits)


def test_the_auxiliary_loss_is_switchs_over_real_tokens():
    model = stir(build("switch")).train()
    tokens = mixed_batch(3, 8)
    counted = torch.arange(8) < torch.tensor([[8], [5], [2]])
    entered = []
    for ffn in switches(model):
        ffn.register_forward_pre_hook(lambda ffn, args: entered.append((ffn, args[0])))
    model(tokens)
    got = model.auxiliary_loss(tokens >= VOCAB, counted)
    wanted = 0.0
    for ffn, states in entered:
        probabilities = F.linear(states[counted], ffn.router.weight).softmax(-1)
        went = probabilities.argmax(-1)
        for expert in range(2):
            wanted += 0.01 * 2 * (went == expert).float().mean() * probabilities[:, expert].mean()
    assert len(entered) == 3
    torch.testing.assert_close(got, wanted)
    got.backward()
    assert all(ffn.router.weight.grad.abs().max() > 0 for ffn in switches(model))
    copy.deepcopy(model)  # nothing of the graph is left behind


def test_the_report_is_each_experts_share_of_each_type():
    model = stir(build("switch")).train()
    tokens = mixed_batch(3, 8)
    types, counted = (tokens >= VOCAB).long(), torch.ones(3, 8, dtype=torch.bool)
    went = []
    ffn = switches(model)[0]
    ffn.register_forward_pre_hook(
        lambda ffn, args: went.append(F.linear(args[0], ffn.router.weight).argmax(-1))
    )
    for _ in range(2):
        model(tokens)
        model.auxiliary_loss(types, counted)
    report = model.training_report()
    for number, kind in enumerate(("text", "items")):
        of_kind = torch.cat([one[types == number] for one in went])
        for expert in range(2):
            shares = report[f"load/{kind}/expert_{expert}"]
            assert len(shares) == 3
            assert shares[0] == pytest.approx((of_kind == expert).float().mean().item())
    assert model.training_report() == {}


def test_balancing_evens_a_lopsided_router():
    model = build("switch").train()
    tokens = mixed_batch(8, 12)
    types, counted = tokens >= VOCAB, torch.ones(8, 12, dtype=torch.bool)

    def loss_of_balance():
        model(tokens)
        return model.auxiliary_loss(types, counted)

    with torch.no_grad():
        for ffn in switches(model):
            ffn.router.weight.copy_(0.05 * torch.randn(2, 16))
            ffn.router.weight[0] += 0.3 * ffn.router.weight.sign()[0]
    optimizer = torch.optim.SGD([ffn.router.weight for ffn in switches(model)], lr=20.0)
    before = loss_of_balance()
    for _ in range(40):
        loss = loss_of_balance()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = loss_of_balance()
    assert after < before and after.item() == pytest.approx(0.03, rel=0.1)  # 1 a layer, at best


@pytest.mark.parametrize("architecture", ["two_expert", "dense", "wide_ffn", "moa", "mot"])
def test_other_designs_add_no_loss_and_report_nothing(architecture):
    model = build(architecture).train()
    tokens = mixed_batch()
    model(tokens)
    assert model.auxiliary_loss(tokens >= VOCAB, tokens >= 0) is None
    assert model.training_report() == {}


def test_a_negative_weight_is_refused():
    with pytest.raises(SettingError, match="load_balancing=-1"):
        build("switch", architecture_args={"load_balancing": -1})


@pytest.mark.parametrize("architecture", ["moa", "mot", "switch"])
def test_gradient_checkpointing_gives_the_same_gradients(architecture):
    tokens = mixed_batch()
    model = stir(build(architecture)).train()

    def gradients():
        model.zero_grad()
        loss = model(tokens, labels=tokens).loss
        auxiliary = model.auxiliary_loss(tokens >= VOCAB, tokens >= 0)
        (loss if auxiliary is None else loss + auxiliary).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    wanted = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)
