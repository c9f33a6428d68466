"""Text in, the same text out; what the tokenizer of a new vocabulary is made of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recbole_idiomoe.lm import add_item_tokens, encode_text, item_tokens, load_backbone
from recbole_idiomoe.lm.vocabulary import END_OF_TEXT, train_tokenizer
from tests.helpers import TINY_BACKBONE

CORPUS = ["title: Café 2000 shampoo, category: Hair", "title: 日本語 tea", "it's 1,234.5 ml"] * 5
TRAINED, BARE = train_tokenizer(CORPUS, 400), train_tokenizer([], 400)
_, BUNDLED = load_backbone("untrained", backbone_args=TINY_BACKBONE)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
# What normalising, stripping, or looking for tokens would change, among anything else.
TRICKY = st.lists(
    st.one_of(
        st.sampled_from(
            [
                END_OF_TEXT,
                "<|it-5|>",
                "<|endoftext",
                "|>",
                "e\u0301",
                "\u0301\u0327",
                "\u1100\u1161",
                "\u2126\ufb01",
                "👩\u200d👩\u200d👧\ufe0f🏽",
                "\r\n",
                "\r",
                "\x00",
                "\ufeff",
                "\u00a0\u2028",
                "'S",
                " " * 50,
                "\t\n" * 9,
            ]
        ),
        st.text(st.characters(codec="utf-8"), max_size=3),
    ),
    max_size=8,
).map("".join)


def assert_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    [ids] = encode_text(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.one_of(TEXTS, TRICKY))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    for tokenizer in (BUNDLED, TRAINED, BARE):
        assert_round_trip(tokenizer, text)


@pytest.mark.parametrize("text", ["e\u0301", "\u0301", "\u1100\u1161", f"a{END_OF_TEXT}b\r\n\x00"])
def test_so_it_does_from_a_saved_model(text: str, tmp_path) -> None:
    _, tokenizer = load_backbone("untrained", backbone_args=TINY_BACKBONE)
    add_item_tokens(tokenizer, item_tokens(["[PAD]", "5"]), len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert_round_trip(again, text)
    assert encode_text(again, [text]) == encode_text(BUNDLED, [text])


def test_training_learns_words_and_splits_digits() -> None:
    assert len(TRAINED) <= 400 and len(BARE) == 257
    words = TRAINED.convert_ids_to_tokens(encode_text(TRAINED, [" shampoo 2000"])[0])
    assert words[0] == "Ġshampoo" and words[-4:] == ["2", "0", "0", "0"]
    assert TRAINED.eos_token == TRAINED.pad_token == END_OF_TEXT
    [learnt], [bare] = encode_text(TRAINED, ["shampoo"]), encode_text(BARE, ["shampoo"])
    assert len(learnt) < len(bare)


def test_the_bundled_tokenizer_is_of_that_kind() -> None:
    assert BUNDLED.eos_token == BUNDLED.pad_token == END_OF_TEXT
    assert BUNDLED.eos_token_id == TRAINED.eos_token_id == 0
    assert len(encode_text(BUNDLED, ["2000"])[0]) == 4
    cut = BUNDLED.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    text = "It's  Café 2000!\r\n  x"
    assert cut(text) == TRAINED.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
