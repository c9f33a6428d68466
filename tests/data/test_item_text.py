"""An item's text is what its file says."""

from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import item_queries, read_catalog
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.options import TextOptions

ITEMS = [
    ("i0", "Blue cup", "19.90", "a b|c", "1{}2"),
    ("i1", "Red cup", "", "", "3"),
    ("i2", "", "1234567.891", "d", ""),
    ("i3", '"Quoted, once', "1e3", "NA", "4"),
    ("i4", "Two  blanks ", "007", "e", "0.30"),
]
COLUMNS = "item_id:token\ttitle:{title}\tprice:float\tkinds:token_seq\tsizes:float_seq\n"


@pytest.fixture(params=["token", "token_seq"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    return texts(tmp_path, request.param)


def texts(tmp_path: Path, title: str = "token", **options: Any) -> dict[str, str]:
    dataset, settings = loaded(tmp_path, title, **options)
    found = read_catalog(dataset.build()[0], settings)
    return dict(zip(found.item_ids, found.texts, strict=True))


def loaded(tmp_path: Path, title: str, **options: Any) -> tuple[Any, TextOptions]:
    folder = tmp_path / "toy"
    folder.mkdir()
    rows = "".join("\t".join(row) + "\n" for row in ITEMS)
    rows = rows.format(options.get("seq_separator", "|"))
    (folder / "toy.item").write_text(COLUMNS.format(title=title) + rows, encoding="utf-8")
    inter = "".join(f"u{u}\ti{(u + k) % 6}\t{k}\n" for u in range(6) for k in range(4))
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (folder / "toy.inter").write_text(header + inter)
    columns = ["item_id", "title", "price", "kinds", "sizes"]
    settings = {
        "data_path": str(tmp_path),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": columns},
        "item_text_fields": columns[1:],
        "item_template": "{title}, price: {price}, kinds: {kinds}, sizes: {sizes}",
        "seq_separator": "|",
        "filter_inter_by_user_or_item": False,
        "topk": [1],
        "valid_metric": "NDCG@1",
        "gpu_id": "",
    }
    config = RunConfig("IDIOMoE", "toy", settings=settings | options)
    return load_dataset(config), TextOptions.from_mapping(config)


def test_text_is_as_written_and_what_is_missing_is_left_out(catalog: dict[str, str]) -> None:
    assert catalog == {
        "[PAD]": "",
        "i0": "Blue cup, price: 19.90, kinds: a b, c, sizes: 1, 2",
        "i1": "Red cup, sizes: 3",
        "i2": "price: 1234567.891, kinds: d",
        "i3": '"Quoted, once, price: 1e3, sizes: 4',
        "i4": "Two blanks, price: 007, kinds: e, sizes: 0.30",
        "i5": "",  # no row in the file
    }


def test_what_recbole_makes_of_numbers_does_not_reach_the_text(tmp_path: Path) -> None:
    changed = texts(tmp_path, normalize_all=True, numerical_features=["price"])
    assert changed["i0"].startswith("Blue cup, price: 19.90,")


def test_words_that_a_blank_separates_stay_one_text(tmp_path: Path) -> None:
    found = texts(tmp_path, "token_seq", seq_separator=" ")
    assert found["i0"] == "Blue cup, price: 19.90, kinds: a b|c, sizes: 1 2"


def test_a_list_answers_a_query_for_each_entry(tmp_path: Path) -> None:
    dataset, settings = loaded(tmp_path, "token", query_share=0.5, query_templates=["{kinds}"])
    queries = item_queries(dataset, settings)
    row = list(dataset.field2id_token["item_id"]).index("i0")
    assert queries[row] == ["a b", "c"]


def test_the_id_can_be_the_text(tmp_path: Path) -> None:
    found = texts(tmp_path, item_text_fields=["item_id"], item_template="{item_id}")
    assert found["i3"] == "i3"
