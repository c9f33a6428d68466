from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.likelihood import _windows, likelihood
from recbole_idiomoe.lm.vocabulary import train_tokenizer

from .conftest import sentences

TEXTS = [sentences(1, 9), "Café.", sentences(2, 3)]
TOKENIZER = train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.5,
        )
    ).eval()


def test_likelihood_equals_a_plain_loop_where_the_texts_fit(model: Qwen2ForCausalLM) -> None:
    nll, token_num = 0.0, 0
    for text in TEXTS:
        end = TOKENIZER.eos_token_id
        ids = torch.tensor([[end, *TOKENIZER(text).input_ids, end]])
        with torch.no_grad():
            nll += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        token_num += ids.shape[1] - 1
    found = likelihood(model, TOKENIZER, TEXTS, context=4096)
    assert found.nll == pytest.approx(nll, rel=1e-5) and found.token_num == token_num
    byte_num = sum(len(text.encode()) for text in TEXTS)
    assert found.byte_num == byte_num
    assert found.bits_per_byte == pytest.approx(nll / math.log(2) / byte_num)
    assert found.nll_per_token == pytest.approx(nll / token_num)


def test_a_tokenizer_without_an_end_of_text_is_told_of(model: Qwen2ForCausalLM) -> None:
    endless = copy.deepcopy(TOKENIZER)
    endless.eos_token = None
    with pytest.raises(BackboneError, match="eos_token"):
        likelihood(model, endless, TEXTS, context=16)


def test_short_windows_predict_every_token_once(model: Qwen2ForCausalLM) -> None:
    found = likelihood(model, TOKENIZER, TEXTS, context=16)
    whole = likelihood(model, TOKENIZER, TEXTS, context=4096)
    assert found.token_num == whole.token_num and found.nll != whole.nll


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 12, 13, 30])
@pytest.mark.parametrize("context", [2, 3, 8])
def test_windows_leave_half_of_the_context_before_what_they_predict(
    length: int, context: int
) -> None:
    predicted = []
    for window, first in _windows(list(range(length)), context):
        assert len(window) <= context
        assert window[0] == 0 or first >= context // 2
        predicted += window[first:]
    assert predicted == list(range(1, length))
