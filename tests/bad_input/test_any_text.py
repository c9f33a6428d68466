"""Whatever a title, a category or an item's id says: it is text, and never another item."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.data.batch import collate
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.sequence import ITEM, TEXT
from recbole_idiomoe.data.template import clean
from recbole_idiomoe.lm.vocabulary import item_tokens
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.options import LanguageModelOptions
from tests.bad_input.outcomes import Read, read
from tests.bad_input.stranger import ITEMS, ROWS
from tests.bad_input.test_any_file import FIELD, GOOD, ITEM_HEADER
from tests.helpers import TINY_BACKBONE, sequence_of, training_sequence
from tests.recommend.test_session import build, wrap

SPECIAL = ["<|it-5|>", "<|it-i1|>", "<|it-[PAD]|>", "<|endoftext|>", "<|reserved-0|>", "<|it-"]
SPECIAL += ["<|im_start|>", "[PAD]", "[", "]", "['a', 'b']", "{title}", "{0}", "%s", "|>"]
SPECIAL += [
    "\u202e",
    "\x00",
    "\x1b[31m",
    "\ud800",
    "\udfff\ud800",
    "\ufffe",
    "\u200b",
    " " * 40,
    "\r\n",
    "\t",
]
TEXTS = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(SPECIAL)), max_size=6).map("".join)
# Without what a line of a file cannot hold.
TITLES = st.one_of(FIELD, TEXTS.map(lambda t: t.encode("utf-8", "ignore").decode())).map(
    lambda t: t.translate(dict.fromkeys(map(ord, "\t\n\r\0")))
)
SETTINGS = {"backbone": "untrained", "backbone_args": TINY_BACKBONE, "max_item_text_tokens": 30}


def model_of(texts: list[str], ids: list[str] | None = None, **options: object) -> CatalogLM:
    names = ids or [f"i{n}" for n in range(len(texts))]
    catalog = Catalog(["[PAD]", *names], ["", *texts], ["", *texts])
    settings = LanguageModelOptions.from_mapping(SETTINGS | options)
    return CatalogLM.build(catalog, settings, seed=0, device=torch.device("cpu")).eval()


def check_sequences(model: CatalogLM) -> None:
    """Item tokens stand where items are, once each, and nowhere else."""
    first = model.lm.config.item_token_offset
    items = np.arange(1, model.catalog.item_num)
    sequence = sequence_of(model.builder, items)
    at_item = sequence.input_ids >= first
    assert (sequence.input_ids[at_item] - first).tolist() == items.tolist()
    assert np.array_equal(sequence.token_types, np.where(at_item, ITEM, TEXT))
    special = set(model.tokenizer.all_special_ids)
    assert not special & set(sequence.input_ids[~at_item].tolist())


@given(st.lists(TEXTS, min_size=2, max_size=6), st.sampled_from(["text ID", "ID text"]))
@example(SPECIAL, "text ID")
@example(["<|it-i0|><|it-i1|>", "<|it-i2|>", ""], "ID text")
def test_no_text_is_an_item(texts: list[str], order: str) -> None:
    model = model_of(texts, segment_order=order, instruction="".join(texts))
    check_sequences(model)
    batch = collate([training_sequence(model.builder, np.arange(1, len(texts) + 1))], 0)
    assert torch.isfinite(model.loss(batch))
    scores = model.scores([np.array([1]), np.arange(1, len(texts) + 1)], query=texts[0])
    assert torch.isfinite(scores[:, 1:]).all() and (scores[:, 0] == -torch.inf).all()


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, unique=True))
@example(["[PAD]", "a"])
@example(["|>", "<|it-|>"])
def test_any_id_is_a_token_of_its_own(ids: list[str]) -> None:
    try:
        model = model_of(["some text"] * len(ids), ids)
    except IdiomoeError as error:
        assert len(str(error).splitlines()) == 1
        assert "appears twice" in str(error) and "[PAD]" in ids
        return
    check_sequences(model)
    tokens = item_tokens(model.catalog.item_ids)
    assert len(set(tokens)) == len(ids) + 1


@given(st.lists(st.tuples(TITLES, TITLES), min_size=len(ITEMS), max_size=len(ITEMS)))
def test_titles_and_categories_of_a_file_are_what_the_catalogue_says(
    texts: list[tuple[str, str]],
) -> None:
    rows = [(i, *text) for (i, *_), text in zip(ITEMS, texts, strict=True)]
    found = read(GOOD.encode(), "\n".join([ITEM_HEADER, *map("\t".join, rows)]).encode())
    assert isinstance(found, Read), found
    assert len(found.rows) == len(ROWS)
    wanted = {i: clean(title) for i, title, _ in rows}
    for item_id, title, text in zip(
        found.catalog.item_ids[1:], found.catalog.titles[1:], found.catalog.texts[1:], strict=True
    ):
        missing = {"", "nan"}  # pandas reads some words as missing
        assert title == wanted[item_id] or title in missing
        assert title in text and "\n" not in text


@pytest.mark.parametrize(
    "title",
    ["x", " ", "[", "]", "((((]", "a,", "'\"", "<|it-5|>", "\u0301", "\U0001f469\u200d", "\x00"],
)
def test_an_enormous_title_takes_no_longer_than_it_is_long(title: str) -> None:
    text = (title * 131_072)[:131_072]
    start = time.process_time()
    model = model_of([text, "short"], max_item_text_tokens=8)
    clean(text)
    assert time.process_time() - start < 10
    check_sequences(model)


RECOMMENDER = build()


@given(TEXTS)
@example("")
@example("x" * 200_000)
def test_any_query_is_read_or_refused(query: str) -> None:
    try:
        found = RECOMMENDER.recommend(["i1"], k=5, query=query)
    except IdiomoeError as error:
        assert "some words are wanted" in str(error) and not query.strip()
    else:
        assert len(found) == 5 and all(np.isfinite(item.score) for item in found)


NEW = st.dictionaries(
    st.sampled_from(["item_id", "title", "category", "titel"]),
    st.one_of(TEXTS, st.none(), st.integers(), st.lists(TEXTS, max_size=2)),
    max_size=3,
)


@example([{"item_id": "\ud800", "title": "thing1"}])
@given(st.lists(st.one_of(NEW, NEW.map(lambda item: {"item_id": "n", "title": "t"} | item), TEXTS)))
def test_items_that_are_added_say_anything(items: list) -> None:
    assert RECOMMENDER.catalog_lm is not None
    recommender = build(item_init="text", item_text_fields={"title": "title", "category": "c"})
    before = list(recommender.catalog.item_ids)
    try:
        recommender.add_items(items)
    except IdiomoeError as error:
        assert len(str(error).splitlines()) == 1 and "items" in str(error)
        assert recommender.catalog.item_ids == before
        return
    assert recommender.catalog.item_ids == before + [item["item_id"] for item in items]
    assert recommender.catalog_lm is not None
    check_sequences(recommender.catalog_lm)
    wrapped = wrap(recommender.catalog_lm, 50)
    assert len(wrapped.recommend(["i1"], k=1000)) == len(before) - 2 + len(items)
