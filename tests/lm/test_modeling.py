from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from recbole_idiomoe.base.errors import CheckpointError
from recbole_idiomoe.lm import IdiomoeConfig, IdiomoeForCausalLM, TwoExpertFFN

from .decoders import FAMILIES, ITEMS, VOCAB, decoder, mixed_batch, text_batch
from .decoders import config as decoder_config

FAMILY = pytest.mark.parametrize("family", FAMILIES)


def build(family="qwen2", **options):
    options = {"item_embedding_dim": 5, "expert_init": "random", "seed": 1, **options}
    return IdiomoeForCausalLM.from_backbone(decoder(family), ITEMS, **options)


def jolt(model):
    """Random item rows of a size that matters, whatever the start."""
    with torch.no_grad():
        model.item_table.rows[1:].normal_(generator=torch.Generator().manual_seed(5))
    return model


def assert_speaks_like(model, backbone):
    tokens = text_batch()
    ours, theirs = model(tokens, labels=tokens), backbone(tokens, labels=tokens)
    assert torch.equal(ours.logits[..., :VOCAB], theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)


@FAMILY
def test_text_is_bit_for_bit_the_backbone_before_and_after_training(family):
    backbone = decoder(family)
    with torch.no_grad():  # biases and norms start at values that would hide mistakes
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    untouched = copy.deepcopy(backbone)
    model = IdiomoeForCausalLM.from_backbone(backbone, ITEMS, expert_width=0.5)
    assert_speaks_like(model, untouched)
    model.freeze("backbone")
    model.train()
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1, 0.05))
    tokens = mixed_batch()
    losses = []
    for _ in range(3):
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert_speaks_like(model.eval(), untouched)


@FAMILY
def test_copied_experts_change_nothing_until_they_train(family):
    tokens = mixed_batch()
    plain = jolt(build(family, expert_layers="none"))
    copied = jolt(build(family, expert_layers="all", expert_init="copy"))
    other = jolt(build(family, expert_layers="all", expert_init="random"))
    wanted = plain(tokens).logits
    torch.testing.assert_close(copied(tokens).logits, wanted, atol=1e-5, rtol=0)
    assert (other(tokens).logits - wanted)[..., 1:VOCAB].abs().max() > 1e-3


@FAMILY
def test_each_token_runs_through_its_own_expert(family):
    """Against the same network with boolean masks in place of the shared index."""
    tokens = mixed_batch()
    model = jolt(build(family))
    types = (tokens >= VOCAB)[..., None]
    wanted_model = copy.deepcopy(model)
    for module in wanted_model.modules():
        if isinstance(module, TwoExpertFFN):
            module.forward = _masked(module, types)  # type: ignore[method-assign]
    torch.testing.assert_close(model(tokens).logits, wanted_model(tokens).logits)


def _masked(ffn, types):
    return lambda x: torch.where(types, ffn.item_expert(x), ffn.text_expert(x))


@FAMILY
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(family, reentrant):
    tokens = mixed_batch()
    model = jolt(build(family, expert_init="random")).train()
    model(tokens, labels=tokens).loss.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    runs = []
    ffn = next(m for m in model.modules() if isinstance(m, TwoExpertFFN))
    ffn.item_expert.register_forward_hook(lambda *_: runs.append(1))
    model(tokens, labels=tokens).loss.backward()
    assert len(runs) == 2  # once forward, once again in backward
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


@FAMILY
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["two_expert", "mot"])
def test_backward_passes_may_come_in_any_order_and_in_any_thread(family, reentrant, architecture):
    first, second = mixed_batch(2, 9), mixed_batch(3, 8, seed=4)
    model = jolt(build(family, architecture=architecture)).train()

    def gradients(*losses):
        model.zero_grad()
        with ThreadPoolExecutor(1) as elsewhere:
            for loss in losses:
                elsewhere.submit(loss.backward).result()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    wanted = gradients(*(model(tokens, labels=tokens).loss for tokens in (first, second)))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    one, other = (model(tokens, labels=tokens).loss for tokens in (first, second))
    for name, gradient in gradients(one, other).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


@FAMILY
def test_items_enter_as_long_as_asked_in_lengths_of_a_text_token(family):
    backbone = decoder(family)
    with torch.no_grad():
        backbone.get_input_embeddings().weight.mul_(5)
    model = IdiomoeForCausalLM.from_backbone(backbone, 2000, item_scale=3.0)
    factor = model.config.item_input_factor
    tokens = torch.arange(VOCAB + 2000)[None]
    embedded = model.get_input_embeddings()(tokens)[0]
    scale = 4.0 if family == "gemma" else 1.0  # sqrt(16)
    torch.testing.assert_close(
        embedded[:VOCAB], scale * backbone.get_input_embeddings().weight, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(embedded[VOCAB:], scale * factor * model.item_table.weight())
    text_rms, item_rms = (
        e.square().mean().sqrt().item() for e in (embedded[:VOCAB], embedded[VOCAB + 1 :])
    )
    assert item_rms / text_rms == pytest.approx(3.0, rel=0.02)


def test_scores_do_not_depend_on_how_items_enter():
    hidden_states = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    near, far = (build(item_scale=scale).item_logits(hidden_states) for scale in (1.0, 9.0))
    assert torch.equal(near, far)


def test_token_types_decide_the_expert_not_the_id():
    model = jolt(build())
    tokens = text_batch()
    given = model.hidden_states(tokens, torch.zeros_like(tokens)).last_hidden_state
    assert torch.equal(given, model.hidden_states(tokens).last_hidden_state)
    with pytest.raises(IndexError):
        model.hidden_states(tokens, torch.ones_like(tokens))


@FAMILY
def test_right_padding_needs_no_mask(family):
    model = jolt(build(family))
    tokens = mixed_batch(1, 6)
    padded = F.pad(tokens, (0, 4))
    wanted = model.hidden_states(tokens).last_hidden_state
    got = model.hidden_states(padded).last_hidden_state[:, :6]
    torch.testing.assert_close(got, wanted)


def test_without_a_mask_attention_is_causal_and_no_mask_is_built(monkeypatch):
    model = build()
    attention = F.scaled_dot_product_attention
    calls = []

    def spy(*args, **kwargs):
        calls.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model.hidden_states(mixed_batch())
    assert calls == [(None, True)] * 3


def test_packed_sequences_do_not_see_each_other():
    model = jolt(build())
    first, second = mixed_batch(1, 5, seed=1), mixed_batch(1, 4, seed=2)
    positions = torch.cat((torch.arange(5), torch.arange(4)))[None]
    packed = model.hidden_states(torch.cat((first, second), 1), position_ids=positions)
    alone = [model.hidden_states(x).last_hidden_state for x in (first, second)]
    torch.testing.assert_close(packed.last_hidden_state, torch.cat(alone, 1))


@FAMILY
def test_cache_equals_the_full_pass_on_mixed_sequences(family):
    model = jolt(build(family))
    tokens = mixed_batch(2, 9)
    wanted = model(tokens).logits
    cache = DynamicCache(config=model.config)
    pieces = [
        model(tokens[:, start:stop], past_key_values=cache, use_cache=True).logits
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9))
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, atol=1e-5, rtol=1e-5)


@FAMILY
def test_generation_from_text_is_the_backbones(family):
    backbone = decoder(family)
    prompt = text_batch()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    wanted = backbone.generate(prompt, attention_mask=mask, **options)
    model = jolt(IdiomoeForCausalLM.from_backbone(backbone, ITEMS))
    got = model.generate(prompt, attention_mask=mask, **options)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_generation_of_items_follows_the_uncached_argmax(family):
    model = jolt(build(family))
    tokens = mixed_batch()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    got = model.generate(tokens, token_types=(tokens >= VOCAB).long(), vocabulary="item", **options)
    wanted = tokens
    for _ in range(5):
        best = model(wanted).logits[:, -1, VOCAB:].argmax(-1, keepdim=True) + VOCAB
        wanted = torch.cat((wanted, best), 1)
    assert torch.equal(got, wanted)
    assert (got[:, -5:] > VOCAB).all()  # never the padding item
    hybrid = model.generate(tokens, vocabulary="hybrid", num_beams=2, **options)
    assert hybrid.shape == got.shape


def test_logits_are_text_then_items_and_can_be_cut_short():
    model = jolt(build())
    tokens = mixed_batch()
    hidden = model.hidden_states(tokens).last_hidden_state
    logits = model(tokens).logits
    assert logits.shape == (*tokens.shape, VOCAB + ITEMS)
    assert torch.equal(logits[..., VOCAB:], model.item_logits(hidden))
    assert (logits[..., VOCAB] == -torch.inf).all()
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, logits[:, -2:])
    chosen = model(tokens, logits_to_keep=torch.tensor([3])).logits
    torch.testing.assert_close(chosen, logits[:, [3]])


@pytest.mark.parametrize("softmax", ["item", "hybrid"])
def test_losses_are_cross_entropies_over_the_stated_candidates(softmax):
    model = jolt(build(softmax=softmax))
    hidden = torch.randn(6, 16)
    items, words = torch.arange(1, 7), torch.arange(6)
    scores = model.item_logits(hidden)
    if softmax == "item":
        wanted = F.cross_entropy(scores, items)
    else:
        both = torch.cat((model.text_logits(hidden), scores), 1)
        wanted = F.cross_entropy(both, items + VOCAB)
    torch.testing.assert_close(model.item_loss(hidden, items), wanted)
    torch.testing.assert_close(
        model.text_loss(hidden, words), F.cross_entropy(model.text_logits(hidden), words)
    )
    assert model.item_loss(hidden[:0], items[:0]).item() == 0
    assert model.text_loss(hidden[:0], words[:0]).item() == 0


@pytest.mark.parametrize("softmax", ["item", "hybrid"])
def test_excluded_items_are_no_candidates_and_are_not_pushed(softmax):
    model = jolt(build(softmax=softmax))
    hidden, items, excluded = torch.randn(5, 16), torch.arange(1, 6), torch.tensor([6, 8])
    loss = model.item_loss(hidden, items, excluded=excluded)
    scores = model.item_logits(hidden)
    kept = [column for column in range(ITEMS) if column not in (6, 8)]
    text = [model.text_logits(hidden)] if softmax == "hybrid" else []
    columns = items + VOCAB * len(text)
    torch.testing.assert_close(
        loss, F.cross_entropy(torch.cat((*text, scores[:, kept]), 1), columns)
    )
    loss.backward()
    gradient = model.item_table.rows.grad
    assert not gradient[excluded].any() and gradient[[1, 7]].any(dim=1).all()
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(model.item_loss(hidden, items, none), model.item_loss(hidden, items))


@pytest.mark.parametrize("softmax", ["item", "hybrid"])
def test_labels_average_over_text_and_item_targets(softmax):
    model = jolt(build(softmax=softmax))
    tokens = mixed_batch()
    labels = tokens.clone()
    labels[:, :3] = -100
    got = model(tokens, labels=labels).loss
    hidden = model.hidden_states(tokens).last_hidden_state[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    text, item = (targets >= 0) & (targets < VOCAB), targets >= VOCAB
    total = text.sum() * model.text_loss(hidden[text], targets[text])
    total = total + item.sum() * model.item_loss(hidden[item], targets[item] - VOCAB)
    count = text.sum() + item.sum()
    torch.testing.assert_close(got, total / count)
    step = model(tokens, labels=labels, num_items_in_batch=40).loss
    torch.testing.assert_close(step, total / 40)


@FAMILY
@pytest.mark.parametrize("inner", [None, 5])
def test_a_saved_folder_opens_with_the_same_logits(family, inner, tmp_path):
    model = jolt(build(family, item_embedding_dim=inner, expert_layers=[0, 2], expert_width=0.3))
    tokens = mixed_batch()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    for load in (AutoModelForCausalLM.from_pretrained, IdiomoeForCausalLM.from_pretrained):
        again = load(tmp_path)
        assert type(again) is IdiomoeForCausalLM and not again.training
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), IdiomoeConfig)


def test_half_precision_survives_saving(tmp_path):
    model = jolt(IdiomoeForCausalLM.from_backbone(decoder().to(torch.bfloat16), ITEMS))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    tokens = mixed_batch()
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_an_incomplete_checkpoint_is_refused(tmp_path):
    model = build()
    weights = {n: w for n, w in model.state_dict().items() if n != "item_table.rows"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match=r"item_table\.rows") as error:
        IdiomoeForCausalLM.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_tied_weights_stay_tied(tmp_path):
    model = build("qwen2")
    model.save_pretrained(tmp_path)
    for each in (model, IdiomoeForCausalLM.from_pretrained(tmp_path), copy.deepcopy(model)):
        backbone = each.backbone
        assert backbone.get_output_embeddings().weight is backbone.get_input_embeddings().weight


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_route_by_themselves(clone):
    model = jolt(build())
    tokens = mixed_batch()
    wanted = model(tokens).logits
    again = clone(model)
    model(text_batch())  # must not disturb the copy
    assert torch.equal(again(tokens).logits, wanted)


def test_a_model_is_freed_as_soon_as_it_is_dropped():
    gc.disable()  # a reference cycle would need it
    try:
        model = weakref.ref(build())
        assert model() is None
    finally:
        gc.enable()


def test_building_is_seeded_and_leaves_the_global_generator_alone():
    backbones = [decoder() for _ in range(3)]
    state = torch.get_rng_state()
    models = [
        IdiomoeForCausalLM.from_backbone(b, ITEMS, expert_init="random", seed=s)
        for b, s in zip(backbones, (1, 1, 2), strict=True)
    ]
    assert torch.equal(state, torch.get_rng_state())
    same, differs = (
        [torch.equal(p, q) for p, q in zip(models[0].parameters(), m.parameters(), strict=True)]
        for m in models[1:]
    )
    assert all(same) and not all(differs)


def test_the_language_model_is_the_backbone_set_to_text():
    model = jolt(build())
    tokens = text_batch()
    wanted = decoder()(tokens).logits
    model(mixed_batch())
    assert torch.equal(model.language_model()(tokens).logits, wanted)


def test_bfloat16_autocast_runs_and_keeps_item_scores_exact():
    model = jolt(build()).train()
    tokens = mixed_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(tokens, labels=tokens)
    output.loss.backward()
    assert output.logits.dtype == torch.float32 and torch.isfinite(output.loss)


@FAMILY
@pytest.mark.parametrize("training", [False, True])
def test_no_cache_is_kept_that_nobody_asked_for(family, training):
    model = build(family).train(training)
    outputs = model.hidden_states(mixed_batch())
    assert outputs.past_key_values is None
    # An ordinary cache, which is filled, gives the same.
    cached = model.hidden_states(mixed_batch(), past_key_values=DynamicCache(), use_cache=True)
    assert cached.past_key_values.get_seq_length() == mixed_batch().shape[1]
    assert torch.equal(outputs.last_hidden_state, cached.last_hidden_state)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sliding_window_slides(attention):
    config = decoder_config("mistral")
    config.sliding_window = 3
    with torch.random.fork_rng(devices=[]):
        backbone = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    tokens = text_batch(length=12)
    wanted = backbone(tokens, use_cache=False).logits
    model = IdiomoeForCausalLM.from_backbone(backbone, ITEMS)
    assert torch.equal(model(tokens).logits[..., :VOCAB], wanted)
