from __future__ import annotations

import copy
import time

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from recbole_idiomoe.base.errors import BackboneError, DataError
from recbole_idiomoe.lm import add_item_tokens, encode_text, item_token, item_tokens, load_backbone
from tests.helpers import TINY_BACKBONE

ITEM_IDS = ["[PAD]", "B00A", "53", "a b", "ünï", "5", "53x"]
ADVERSARIAL = [
    "<|it-5|>",
    "x<|endoftext|>y",
    "<|im_start|>system",
    " <|it-[PAD]|> <|reserved-0|>",
    "<|it-5|><|it-53|>",
]


@pytest.fixture(scope="module")
def plain():
    return load_backbone("untrained", backbone_args=TINY_BACKBONE)[1]


@pytest.fixture
def tokenizer(plain):
    return copy.deepcopy(plain)


def test_item_i_is_one_token_with_id_offset_plus_i(tokenizer, tmp_path):
    offset = len(tokenizer) + 4  # as Qwen2.5, whose embedding is larger than its tokenizer
    add_item_tokens(tokenizer, item_tokens(ITEM_IDS), offset)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(each) == offset + len(ITEM_IDS)
        for i, item_id in enumerate(ITEM_IDS):
            assert each.convert_tokens_to_ids(item_token(item_id)) == offset + i
            around = each(f"a{item_token(item_id)}b", add_special_tokens=False)["input_ids"]
            assert around == [*each("a")["input_ids"], offset + i, *each("b")["input_ids"]]
            assert each.convert_ids_to_tokens(offset + i) == item_token(["[PAD]", *ITEM_IDS[1:]][i])
        assert each.convert_ids_to_tokens(offset - 1) == "<|reserved-3|>"


def test_the_first_item_is_padding_whatever_its_id(tokenizer):
    offset = len(tokenizer)
    add_item_tokens(tokenizer, item_tokens(["anything", "1"]), offset)
    assert tokenizer.convert_ids_to_tokens([offset, offset + 1]) == ["<|it-[PAD]|>", "<|it-1|>"]


@pytest.mark.parametrize("with_items", [False, True])
@pytest.mark.parametrize("text", ADVERSARIAL)
def test_titles_that_spell_tokens_stay_text(tokenizer, text, with_items, tmp_path):
    words = len(tokenizer)
    special = {tokenizer.eos_token_id}
    if with_items:
        add_item_tokens(tokenizer, item_tokens(ITEM_IDS), words + 1)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    [ids] = encode_text(tokenizer, [text])
    assert all(i < words for i in ids) and not special & set(ids)
    assert tokenizer.decode(ids) == text
    if with_items:  # the caution is needed: an ordinary call does parse it
        assert len(tokenizer(text)["input_ids"]) < len(ids)


@pytest.mark.parametrize(
    ("text", "read"), [("a\ud800b", "a\ufffdb"), ("\ud83d\ude00", "\U0001f600"), ("\x00\x07", None)]
)
def test_any_string_is_encoded(tokenizer, text, read):
    [ids] = encode_text(tokenizer, [text])
    assert tokenizer.decode(ids) == (read or text)


def test_nothing_is_added_around_texts(tokenizer):
    wanted = tokenizer("a")["input_ids"]
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end[0]} $A", special_tokens=[end]
    )
    assert tokenizer("a")["input_ids"] == [end[1], *wanted]
    assert encode_text(tokenizer, []) == []
    assert encode_text(tokenizer, ["", "a"]) == [[], wanted]


def test_too_small_an_embedding_is_refused(tokenizer):
    with pytest.raises(BackboneError, match=str(len(tokenizer))):
        add_item_tokens(tokenizer, item_tokens(ITEM_IDS), len(tokenizer) - 1)


@pytest.mark.parametrize("ids", [["[PAD]", "a", "b", "a"], ["[PAD]", "[PAD]"]])
def test_an_id_twice_is_refused(tokenizer, ids):
    with pytest.raises(DataError, match="twice"):
        add_item_tokens(tokenizer, item_tokens(ids), len(tokenizer))


def test_a_second_round_of_items_is_refused(tokenizer):
    offset = len(tokenizer)
    add_item_tokens(tokenizer, item_tokens(ITEM_IDS), offset)
    with pytest.raises(BackboneError):
        add_item_tokens(tokenizer, item_tokens(ITEM_IDS), offset)


def test_twenty_thousand_items_take_no_time(tokenizer):
    start = time.perf_counter()
    add_item_tokens(tokenizer, item_tokens(["[PAD]", *map(str, range(20_000))]), len(tokenizer))
    assert time.perf_counter() - start < 5  # .1 s here; a quadratic step would take minutes
