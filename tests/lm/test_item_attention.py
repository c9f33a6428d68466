"""Who attends to whom, told by where gradients flow."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from recbole_idiomoe.base.errors import BackboneError, SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM, decoder_layers
from recbole_idiomoe.lm.configuration import ATTENTIONS
from recbole_idiomoe.lm.decoder import attention_of
from recbole_idiomoe.lm.item_attention import PATTERNS, ItemAttention, item_mask
from recbole_idiomoe.models.language.options import LanguageModelOptions

from .decoders import FAMILIES, ITEMS, LAYERS, VOCAB, decoder, text_batch

I = VOCAB + 1  # an item token  # noqa: E741
TOKENS = torch.tensor(
    [[3, 4, 7, 8, I, 9, I + 1, I + 2, 10, 11, I + 3], [5, 6, I, I + 4, 7, 7, I + 5, 0, 0, 0, 0]]
)
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4], [1, 1, 1, 2, 3, 3, 3, 0, 0, 0, 0]])
TYPES = (TOKENS >= VOCAB).long()


def build(family: str, pattern: str, **options: object) -> IdiomoeForCausalLM:
    model = IdiomoeForCausalLM.from_backbone(
        decoder(family), ITEMS, attention=pattern, expert_init="random", seed=1, **options
    )
    with torch.no_grad():
        model.item_table.rows[1:].normal_(generator=torch.Generator().manual_seed(5))
    return model


def allowed(kind: str, segments: list[int], is_item: list[int], row: int, column: int) -> bool:
    if column > row:
        return False
    if 0 in (segments[row], segments[column]):
        return True
    same = segments[row] == segments[column]
    return {
        "intra": same,
        "inter": not same or row == column,
        "own_text": same or bool(is_item[row] and is_item[column]),
    }[kind]


def test_settings_and_configuration_know_the_same_patterns() -> None:
    assert (
        LanguageModelOptions.options()["attention"].choices == ATTENTIONS == ("causal", *PATTERNS)
    )


@pytest.mark.parametrize("kind", ["intra", "inter", "own_text"])
def test_masks_say_what_the_table_says(kind: str) -> None:
    mask = item_mask(kind, SEGMENTS, TYPES)
    for b, (segments, types) in enumerate(zip(SEGMENTS.tolist(), TYPES.tolist(), strict=True)):
        for row in range(len(segments)):
            for column in range(len(segments)):
                assert mask[b, row, column] == allowed(kind, segments, types, row, column)
    assert mask.diagonal(dim1=1, dim2=2).all()  # no row is empty


def attention_inputs_and_outputs(model: IdiomoeForCausalLM) -> list[tuple[Tensor, Tensor]]:
    """What each layer's attention took and gave, (B, T, d) each, in one forward pass."""
    seen = []

    def note(_: nn.Module, args: tuple, kwargs: dict, output: tuple) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"], output[0]))

    hooks = [
        attention_of(layer).register_forward_hook(note, with_kwargs=True)
        for layer in decoder_layers(model.backbone)
    ]
    model.hidden_states(TOKENS, segments=SEGMENTS)
    for hook in hooks:
        hook.remove()
    return seen


def leakage(inputs: Tensor, outputs: Tensor) -> Tensor:
    """(B, T, T): whether a row of ``outputs`` depends on a column of ``inputs``."""
    rows = [
        torch.autograd.grad(outputs[:, row].square().sum(), inputs, retain_graph=True)[0]
        for row in range(outputs.shape[1])
    ]
    return torch.stack([row.abs().sum(-1) > 0 for row in rows], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_flow_just_where_the_masks_allow(
    family: str, pattern: str, attention: str
) -> None:
    model = build(family, pattern)
    model.set_attn_implementation(attention)
    kinds = PATTERNS[pattern]
    layers = attention_inputs_and_outputs(model)
    assert len(layers) == LAYERS
    for index, (inputs, outputs) in enumerate(layers):
        mask = item_mask(kinds[index % len(kinds)], SEGMENTS, TYPES)
        assert torch.equal(leakage(inputs, outputs), mask)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_attention_takes_the_softmax_over_allowed_tokens(pattern: str) -> None:
    """Weights of eager attention against scores masked by hand."""
    model = build("llama", pattern)
    model.set_attn_implementation("eager")
    outputs = model.hidden_states(TOKENS, segments=SEGMENTS, output_attentions=True)
    for layer, weights in enumerate(outputs.attentions):
        kinds = PATTERNS[pattern]
        mask = item_mask(kinds[layer % len(kinds)], SEGMENTS, TYPES).unsqueeze(1)
        assert (weights[~mask.expand_as(weights)] == 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_eager_and_sdpa_agree(pattern: str) -> None:
    states = []
    for attention in ("sdpa", "eager"):
        model = build("qwen2", pattern)
        model.set_attn_implementation(attention)
        states.append(model.hidden_states(TOKENS, segments=SEGMENTS).last_hidden_state)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_on_text_it_stays_its_backbone(family: str, pattern: str) -> None:
    model, backbone = build(family, pattern), decoder(family)
    model.hidden_states(TOKENS, segments=SEGMENTS)  # leaves no mask behind
    tokens = text_batch()
    wanted = backbone(tokens).logits
    assert torch.equal(model(tokens).logits[..., :VOCAB], wanted)
    assert torch.equal(model.language_model()(tokens).logits, wanted)


def test_it_is_saved_and_loaded(tmp_path) -> None:
    model = build("qwen2", "intra_inter")
    wanted = model(TOKENS, segments=SEGMENTS).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.attention == "intra_inter"
    assert torch.equal(loaded(TOKENS, segments=SEGMENTS).logits, wanted)
    causal = build("qwen2", "causal")(TOKENS).logits
    assert not torch.allclose(wanted, causal)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_masks_of_their_own(clone: Callable[[nn.Module], nn.Module]) -> None:
    model = build("qwen2", "intra_inter")
    wanted = model(TOKENS, segments=SEGMENTS).logits
    again = clone(model)
    model(TOKENS[:1, :5], segments=SEGMENTS[:1, :5])
    assert torch.equal(again(TOKENS, segments=SEGMENTS).logits, wanted)


def test_gradient_checkpointing_finds_the_masks_again() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build("qwen2", "intra_inter").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.hidden_states(TOKENS, segments=SEGMENTS).last_hidden_state.sum().backward()
        gradients.append(model.item_table.rows.grad)
    torch.testing.assert_close(*gradients)


def test_what_it_cannot_do_is_refused_in_one_line() -> None:
    model = build("qwen2", "own_text")
    for wrong in (
        {},
        {"segments": SEGMENTS, "attention_mask": torch.ones_like(TOKENS)},
    ):
        with pytest.raises(SettingError, match="needs segments"):
            model.hidden_states(TOKENS, **wrong)
    with pytest.raises(SettingError, match="'sideways'"):
        build("qwen2", "sideways")
    backbone = decoder("qwen2")
    backbone.config._attn_implementation = "flex_attention"
    with pytest.raises(BackboneError, match="flex_attention"):
        ItemAttention(backbone, "own_text")
