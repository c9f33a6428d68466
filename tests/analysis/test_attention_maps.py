"""Attention whose pattern is known: a head that is wired to the token before it."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_idiomoe.analysis.attention_maps import (
    Means,
    even_attention,
    read_items,
    read_text,
    reading_attention,
    text_attention,
)
from recbole_idiomoe.lm import IdiomoeForCausalLM, decoder_layers
from recbole_idiomoe.lm.decoder import attention_of
from tests.lm.decoders import FAMILIES, ITEMS, LAYERS, VOCAB, decoder, mixed_batch, text_batch


def looking_back(distance: int = 1) -> LlamaForCausalLM:
    """One head that attends to the token ``distance`` before, by rotary positions alone.

    Every token has the same query and the same key, but for a turn: with the one rotary
    frequency of 2 dimensions a key at ``distance`` and its query coincide, and no others do.
    """
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        attention_bias=True,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    turn = torch.tensor(float(distance))
    with torch.no_grad():
        for layer in decoder_layers(model):
            attention = attention_of(layer)
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight.zero_()
            attention.k_proj.bias.copy_(torch.tensor([1.0, 0.0]))
            attention.q_proj.bias.copy_(1e5 * torch.stack((torch.cos(-turn), torch.sin(-turn))))
    return model


def test_a_head_wired_to_the_previous_token_gives_one() -> None:
    # Six tokens: farther apart the turn of a circle comes round again.
    layers = text_attention(looking_back(), [[1, 2, 3, 4, 0, 2], [3, 1]], distances=4)
    assert len(layers) == 2
    for layer in layers:
        assert layer.previous == pytest.approx(1.0)
        assert layer.entropy == pytest.approx(0.0, abs=1e-6)
        # The first token can see itself alone, and the second looks back to the first.
        assert layer.first == pytest.approx(4 / 8)
        assert layer.distances == pytest.approx([2 / 8, 1.0, 0.0, 0.0, 0.0], abs=1e-6)


def test_a_head_wired_to_the_token_before_that_does_not() -> None:
    (layer, _) = text_attention(looking_back(2), [[1, 2, 3, 4, 0]], distances=4)
    assert layer.previous < 0.3 and layer.distances[2] == pytest.approx(1.0)


def test_even_attention_has_the_numbers_of_even_attention() -> None:
    means, length = Means(), 4
    read_text(even_attention(length), 0, means, distances=9)
    found = means.layer(0)
    assert found["previous"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert found["first"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert found["entropy"] == pytest.approx(sum(math.log(n) for n in range(1, 5)) / 4)
    assert found["distances"][3] == pytest.approx(1 / 4)
    assert all(math.isnan(value) for value in found["distances"][4:])  # nobody is so far apart


def test_shares_of_items_and_text_are_those_of_a_hand_made_history() -> None:
    attention = torch.tensor(
        [[1.0, 0, 0, 0], [0.4, 0.6, 0, 0], [0.1, 0.7, 0.2, 0], [0.2, 0.3, 0.1, 0.4]],
        dtype=torch.float64,
    )
    means = Means()
    read_items(attention, 0, means, torch.tensor([False, True, False, True]))
    assert means.layer(0) == pytest.approx(
        {
            "item_to_itself": (0.6 + 0.4) / 2,
            "item_to_items": (0.0 + 0.3) / 2,
            "item_to_text": (0.4 + 0.3) / 2,
            "item_to_first": (0.4 + 0.2) / 2,
            "text_to_items": (0.0 + 0.7) / 2,
            "text_to_first": (1.0 + 0.1) / 2,
        }
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_its_attention_layer_by_layer(family: str) -> None:
    lm = IdiomoeForCausalLM.from_backbone(decoder(family), ITEMS)
    before = lm.backbone.config._attn_implementation
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        plain = lm(mixed_batch()).logits
        with reading_attention(lm.backbone, seen.__setitem__):
            read = lm(mixed_batch()).logits
        after = lm(mixed_batch()).logits
    torch.testing.assert_close(read, plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(after, plain) and lm.backbone.config._attn_implementation == before
    assert list(seen) == list(range(LAYERS))
    for attention in seen.values():
        assert attention.shape == (2, 9, 9)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 9, dtype=torch.float64))
        assert not attention.triu(1).any()
    wanted = decoder(family)
    wanted.set_attn_implementation("eager")
    prompt = text_batch(1)
    with torch.no_grad():
        weights = wanted(prompt, output_attentions=True).attentions
    found = text_attention(lm.language_model(), prompt.tolist(), distances=3)
    for layer, attention in zip(found, weights, strict=True):
        mean = attention[0].mean(0)
        assert layer.previous == pytest.approx(mean.diagonal(-1).mean().item(), abs=1e-5)
        assert layer.entropy == pytest.approx(
            -(mean * mean.clamp_min(1e-30).log()).sum(1).mean().item(), abs=1e-5
        )
    assert prompt.max() < VOCAB


def test_layers_are_let_go_one_by_one() -> None:
    """No layer's weights live on when the next layer's are made."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    model = decoder()
    model.set_attn_implementation("eager")

    def keep(_: object, __: object, output: tuple[torch.Tensor, ...]) -> None:
        assert all(reference() is None for reference in alive)
        alive.append(weakref.ref(output[1]))

    with torch.no_grad(), reading_attention(model, lambda layer, found: None):
        hooks = [attention_of(each).register_forward_hook(keep) for each in decoder_layers(model)]
        model.base_model(text_batch(1))
    assert len(alive) == LAYERS == len(hooks)
