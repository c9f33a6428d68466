import json
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe.base.errors import CheckpointError, DataError, SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import Catalog, read_catalog, read_history
from recbole_idiomoe.data.dataset import HistoryDataset
from recbole_idiomoe.data.options import TextOptions
from tests.helpers import DATASET_SETTINGS, SMALL_ML_100K, write_dataset

CATALOG = Catalog(["[PAD]", "a", "b"], ["", "A", "B"], ["", "title: A", "title: B"])


def from_files(tmp_path: Path, items: list[tuple[str, str, str]], **settings: Any) -> Catalog:
    rows = [("u", item, float(n)) for n, (item, *_) in enumerate(items)]
    path = write_dataset(tmp_path / "shop", rows, items)
    config = RunConfig(
        "IDIOMoE", "shop", settings=DATASET_SETTINGS | settings | {"data_path": str(path)}
    )
    return read_catalog(HistoryDataset(config).build()[0], TextOptions.from_mapping(config))


def test_ml_100k() -> None:
    config = RunConfig("IDIOMoE", "ml-100k", settings=SMALL_ML_100K)
    catalog = read_catalog(HistoryDataset(config).build()[0], TextOptions.from_mapping(config))
    assert catalog.item_ids[0] == "[PAD]"
    assert catalog.texts[0] == ""
    row = catalog.item_ids.index("1")
    assert catalog.titles[row] == "Toy Story"
    assert catalog.texts[row] == "title: Toy Story, category: Animation Children's Comedy"


def test_awkward_text(tmp_path: Path) -> None:
    titles = ['"unbalanced', 'a "quoted" word', "🧸 toy", "דובי", "<|it-a|>", "", "It's"]
    items = [(f"i{n}", title, "X & Y|Z") for n, title in enumerate(titles)]
    catalog = from_files(tmp_path, items)
    found = dict(zip(catalog.item_ids, catalog.texts, strict=True))
    for item, title, _ in items:
        expected = f"title: {title}, category: X & Y, Z" if title else "category: X & Y, Z"
        assert found[item] == expected


def test_items_without_any_text(tmp_path: Path) -> None:
    items = [("a", "A", ""), ("b", "", ""), ("c", "C", "x"), ("d", "", "")]
    catalog = from_files(tmp_path, items)
    found = dict(zip(catalog.item_ids, catalog.texts, strict=True))
    assert found == {
        "[PAD]": "", "a": "title: A", "b": "", "c": "title: C, category: x", "d": ""
    }  # fmt: skip


def test_no_text_fields(tmp_path: Path) -> None:
    catalog = from_files(tmp_path, [(f"i{n}", "T", "c") for n in range(4)], item_text_fields=None)
    assert not any(catalog.texts)


def test_a_column_that_was_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"'brand'.*loaded: item_id, title, categories"):
        from_files(
            tmp_path,
            [(f"i{n}", "T", "c") for n in range(4)],
            item_text_fields={"title": "brand", "category": "categories"},
        )


def test_rows_names_what_is_unknown() -> None:
    assert CATALOG.rows(["b", "a"]).tolist() == [2, 1]
    with pytest.raises(DataError, match=r"1 of 2 items.*'z'"):
        CATALOG.rows(["a", "z"])
    with pytest.raises(DataError, match="PAD"):
        CATALOG.rows(["[PAD]"])


def test_fingerprint_depends_on_order_and_text() -> None:
    swapped = Catalog(["[PAD]", "b", "a"], ["", "B", "A"], ["", "title: B", "title: A"])
    reworded = Catalog(CATALOG.item_ids, CATALOG.titles, ["", "title: A", "title: C"])
    assert len({CATALOG.fingerprint, swapped.fingerprint, reworded.fingerprint}) == 3


def test_save_and_load(tmp_path: Path) -> None:
    CATALOG.save(tmp_path)
    assert Catalog.load(tmp_path) == CATALOG


def test_an_altered_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no catalogue"):
        Catalog.load(tmp_path)
    CATALOG.save(tmp_path)
    path = tmp_path / "catalog.json"
    content = json.loads(path.read_text())
    content["texts"][1] = "title: other"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="altered"):
        Catalog.load(tmp_path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="no catalogue"):
        Catalog.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "item_ids"),
    [
        ("", []),
        ("i3, i4,,", ["i3", "i4"]),
        ('"Tins, large", X3', ["Tins, large", "X3"]),
        ('5" pipe,"""so"" called, tin"', ['5" pipe', '"so" called, tin']),
        ("it's,X3", ["it's", "X3"]),
    ],
)
def test_a_history_is_written_as_a_line_of_a_csv_file(text: str, item_ids: list[str]) -> None:
    assert read_history(text, "--history") == item_ids


@pytest.mark.parametrize("text", ['"Tins, large', '"Tins" large', "a\nb"])
def test_a_history_that_is_no_such_line_says_how_to_write_it(text: str) -> None:
    with pytest.raises(DataError, match=r"^--history: .* as in a CSV file: ") as error:
        read_history(text, "--history")
    assert "\n" not in str(error.value)
