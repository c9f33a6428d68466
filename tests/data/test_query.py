from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe.base.errors import DataError, SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import item_queries
from recbole_idiomoe.data.dataset import HistoryDataset
from recbole_idiomoe.data.options import TextOptions
from tests.helpers import DATASET_SETTINGS, SMALL_ML_100K, write_dataset

ITEMS = [("a", "Red train", "Toys|Trains"), ("b", "Doll", ""), ("c", "", "Toys"), ("d", "", "")]


def queries(tmp_path: Path, **options: Any) -> dict[str, list[str]]:
    rows = [("u", item, float(n)) for n, (item, *_) in enumerate(ITEMS)]
    path = write_dataset(tmp_path / "shop", rows, ITEMS)
    settings = DATASET_SETTINGS | {"data_path": str(path)} | options
    config = RunConfig("IDIOMoE", "shop", settings=settings)
    dataset = HistoryDataset(config).build()[0]
    found = item_queries(dataset, TextOptions.from_mapping(config))
    return dict(zip(dataset.field2id_token["item_id"], found, strict=True))


def test_each_text_field_by_itself_and_each_of_its_entries(tmp_path: Path) -> None:
    assert queries(tmp_path) == {
        "[PAD]": [],
        "a": ["Red train", "Toys", "Trains"],
        "b": ["Doll"],
        "c": ["Toys"],
        "d": [],
    }


def test_templates(tmp_path: Path) -> None:
    found = queries(
        tmp_path, query_templates=["something like {title}", "{category}, such as {title}"]
    )
    assert found["a"] == [
        "something like Red train",
        "Toys, such as Red train",
        "Trains, such as Red train",
    ]
    # What is missing is left out with the words that lead to it, and nothing is asked twice.
    assert found["b"] == ["something like Doll", "such as Doll"]
    assert (found["c"], found["d"]) == (["Toys"], [])


def test_words_that_recbole_splits_are_one_entry() -> None:
    config = RunConfig("IDIOMoE", "ml-100k", settings=SMALL_ML_100K)
    dataset = HistoryDataset(config).build()[0]
    row = list(dataset.field2id_token["item_id"]).index("1")
    assert item_queries(dataset, TextOptions.from_mapping(config))[row] == [
        "Toy Story",
        "Animation Children's Comedy",
    ]


@pytest.mark.parametrize("template", ["{brand}", "anything", "{title"])
def test_a_template_that_does_not_fit_is_one_line(tmp_path: Path, template: str) -> None:
    with pytest.raises(SettingError, match="query_templates=") as error:
        queries(tmp_path, query_templates=[template])
    assert "\n" not in str(error.value)


def test_without_text_there_is_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"query_share=0\.5: queries are made from"):
        queries(tmp_path, query_share=0.5, item_text_fields=None)


def test_templates_are_texts(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="query_templates"):
        queries(tmp_path, query_templates=["{title}", 3])
