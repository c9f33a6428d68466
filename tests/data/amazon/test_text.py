"""Whatever the metadata hold, an atomic file can hold what becomes of it."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_idiomoe.data.amazon.reading import LONGEST, Dump, category_names, one_line
from recbole_idiomoe.data.amazon.writing import convert
from recbole_idiomoe.data.atomic_files import AtomicFile
from tests.data.amazon.dumps import block, review, write

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(ANY_TEXT | st.lists(ANY_TEXT) | JSON)
def test_any_title_is_one_line_of_text(value: object) -> None:
    text = one_line(value)
    assert len(text) <= LONGEST and text == text.strip() and "\t" not in text
    assert text.splitlines() in ([], [text]) and text.encode().decode() == text


@given(JSON)
def test_any_categories_are_names_without_the_separator(value: object) -> None:
    names = category_names(value)
    assert len(set(names)) == len(names) and all(names) and "|" not in "".join(names)


def test_categories_may_be_nested_without_end() -> None:
    nested: list[object] = ["deep"]
    for _ in range(100_000):
        nested = [nested]
    assert category_names(nested) == ["deep"]


@given(st.lists(st.binary(max_size=40) | JSON.map(lambda row: json.dumps(row).encode())))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_line_is_read_or_counted(tmp_path: Path, lines: list[bytes]) -> None:
    good = review(2014, "A1", "B1", 1)
    path = write(tmp_path / "x.json", [good, *(line.replace(b"\n", b"") + b"\n" for line in lines)])
    dump = Dump(path, 1.0)
    assert len(list(dump.reviews())) == dump.lines - dump.faults.total() >= 1


@given(st.lists(st.tuples(JSON, JSON, JSON), min_size=5, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_any_metadata_make_a_file_that_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[object, object, object]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    about = [
        {"asin": f"B{n:09d}", "title": title, "category": categories, "brand": brand}
        for n, (title, categories, brand) in enumerate(rows)
    ]
    lines = (json.dumps(row).encode() + b"\n" for row in about)
    reviews = write(folder / "r.gz", (review(2018, *row) for row in block()))
    convert(reviews, write(folder / "m.gz", lines), folder / "toys")
    AtomicFile(folder / "toys/toys.item", "\t", None).check_rows(["item_id"])
    AtomicFile(folder / "toys/toys.inter", "\t", None).check_rows(["user_id"], number="timestamp")
