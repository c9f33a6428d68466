"""Dropout of attention: its weights and its outputs, in every family, in training alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers
from tests.lm.decoders import FAMILIES, ITEMS, LAYERS, VOCAB, decoder

P = 0.4


def build(family: str = "qwen2", **options: Any) -> IdiomoeForCausalLM:
    return IdiomoeForCausalLM.from_backbone(decoder(family), ITEMS, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_outputs_are_dropped_in_training_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    attend = F.scaled_dot_product_attention

    def watched(*args: Any, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
        seen.append(dropout_p)
        return attend(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    model = build(family, attention_dropout=P)
    zeros: list[float] = []
    for layer in decoder_layers(model.backbone):
        attention_of(layer).register_forward_hook(
            lambda module, args, output: zeros.append((output[0] == 0).float().mean().item())
        )
    tokens = torch.arange(160).reshape(4, 40) % (VOCAB + ITEMS - 1)
    tokens[tokens == VOCAB] = VOCAB + 1  # not the padding item
    torch.manual_seed(0)
    model.train()(tokens)
    assert seen == [P] * LAYERS
    assert zeros == pytest.approx([P] * LAYERS, abs=0.05)
    seen.clear(), zeros.clear()
    model.eval()
    plain = build(family).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, rtol=0, atol=0)
    assert set(seen) == {0.0} and max(zeros) < 0.01


def test_a_saved_model_keeps_it(tmp_path: Any) -> None:
    """Training that goes on from a folder goes on with it."""
    build(attention_dropout=P).save_pretrained(tmp_path)
    again = IdiomoeForCausalLM.from_pretrained(tmp_path)
    assert again.config.attention_dropout == P
    tokens = torch.arange(20).unsqueeze(0)
    torch.manual_seed(0)
    one = again.train()(tokens).logits
    assert not torch.equal(one, again(tokens).logits)
    assert torch.equal(again.eval()(tokens).logits, again(tokens).logits)


@pytest.mark.parametrize("architecture", ["dense", "moa", "mot", "wide_ffn", "lora"])
def test_controls_have_it_too(architecture: str) -> None:
    model = build(attention_dropout=P, architecture=architecture).train()
    tokens = torch.arange(20).unsqueeze(0)
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
