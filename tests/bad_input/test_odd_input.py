"""Odd input that is taken, and gives a right result."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.stranger import ITEMS, ROWS, Stranger, both


@both
@pytest.mark.parametrize(
    "titles",
    [
        ["x" * 100_000],
        ['"one","two"', '""', '"', "it's"],
        ["a\x0bb", "c\x0cd", "\x1c\x1d\x1e", "a\u2028b", "e\x85f"],
        ["😀😀", "👨‍👩‍👧", "שלום עולם", "\u202eabc", "e\u0301", "\u200b"],
        ["<|endoftext|>", "<|it-i1|>", "<|it-[PAD]|>", "{title}", "{", "}", "{0}", "%s"],
        ["None", "NA", "null"],
        ["", "  "],
    ],
)
def test_any_title_is_read(titles: list[str], model: str, stranger: Stranger) -> None:
    items = [(i, titles[n % len(titles)], "") for n, (i, *_) in enumerate(ITEMS)]
    stranger.files(items=items)
    assert stranger.result(model)["items"] == 10


@both
@pytest.mark.parametrize(
    "form", ["{}0", "00{}", "{}.0", " {} x", '"{}', '"{}"', "{}|>", "<|it-{}|>", "a,{}", "😀{}"]
)
def test_any_item_id_is_kept(form: str, model: str, stranger: Stranger) -> None:
    new = {i: form.format(n) for n, (i, *_) in enumerate(ITEMS)}
    stranger.files([(u, new[i], t) for u, i, t in ROWS], [(new[i], a, b) for i, a, b in ITEMS])
    result = stranger.result(model)
    assert (result["items"], result["interactions"]) == (10, len(ROWS))
    listed = json.loads((Path(result["folder"]) / "catalog.json").read_text())["item_ids"]
    assert sorted(listed[1:]) == sorted(new.values())


@both
@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"rows": [*ROWS, ("solo", "i1", 5.0)]}, (9, 10, 49)),
        ({"rows": [*ROWS, *ROWS]}, (8, 10, 96)),
        ({"rows": [(f"v{n}", f"i{n}", 1.0) for n in range(5)] + ROWS[:4]}, (6, 10, 9)),
        ({"items": [*ITEMS, ("z", "nobody's", "")]}, (8, 11, 48)),
        ({"items": [*ITEMS, ("i1", "again", "")]}, (8, 10, 48)),
        ({"inter": lambda text: text.replace("\n", "\r\n")}, (8, 10, 48)),
        ({"inter": lambda text: text.replace("\nu3", "\n\nu3")}, (8, 10, 48)),
        ({"inter": lambda text: text[:-1]}, (8, 10, 48)),
        ({"rows": [(u, i, -t) for u, i, t in ROWS]}, (8, 10, 48)),
    ],
)
def test_odd_rows_are_counted_as_they_are(
    changes: dict[str, Any], counts: tuple[int, ...], model: str, stranger: Stranger
) -> None:
    stranger.files(**changes)
    result = stranger.result(model)
    assert (result["users"], result["items"], result["interactions"]) == counts


@both
def test_items_without_a_row_lose_their_interactions_as_in_recbole(
    model: str, stranger: Stranger
) -> None:
    stranger.files(items=ITEMS[:8])
    result = stranger.result(model)
    known = {i for i, *_ in ITEMS[:8]}
    assert result["interactions"] == sum(i in known for _, i, _ in ROWS) < len(ROWS)


@both
@pytest.mark.parametrize("size", [1, 2])
def test_a_catalogue_may_be_tiny(size: int, model: str, stranger: Stranger) -> None:
    stranger.files([(u, f"i{int(t) % size}", t) for u, _, t in ROWS], ITEMS[:size])
    result = stranger.result(model, topk=[size], valid_metric=f"NDCG@{size}")
    assert result["items"] == size and result["test_result"][f"hit@{size}"] == 1


@both
def test_the_order_in_the_file_is_of_no_matter(model: str, stranger: Stranger) -> None:
    stranger.files(ROWS[::-1])
    backwards = stranger.result(model)
    shutil.rmtree("dataset")
    stranger.files(ROWS)
    assert stranger.result(model)["users"] == backwards["users"] == 8


@both
def test_long_histories_are_cut(model: str, stranger: Stranger) -> None:
    rows = [(f"u{n}", f"i{(7 * k + n) % 10}", float(k)) for n in range(8) for k in range(70)]
    stranger.files(rows)
    short = {"max_tokens": 8} if model == "IDIOMoE" else {}
    assert stranger.result(model, MAX_ITEM_LIST_LENGTH=50, **short)["interactions"] == 560


@both
@pytest.mark.parametrize(
    "settings",
    [
        {"eval_args": {"mode": "uni100"}, "mask_seen": False},
        {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}}},
        {"worker": 2},
        {"eval_step": 0},
        {"load_col": None, "item_text_fields": None},
    ],
)
def test_odd_settings_are_taken(settings: dict[str, Any], model: str, stranger: Stranger) -> None:
    stranger.result(model, **{"epochs": 2, **settings})


def test_bf16_and_no_text_are_taken(stranger: Stranger) -> None:
    stranger.result("IDIOMoE", precision="bf16")
    stranger.result("IDIOMoE", "--instruction=007", use_text=False)
