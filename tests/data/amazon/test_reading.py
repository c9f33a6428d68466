"""Lines of dumps, good and bad."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.amazon import reading
from recbole_idiomoe.data.amazon.reading import BrokenDump, Dump, Item, Review
from tests.data.amazon.dumps import YEARS, metadata, review, write

GOOD = [review(2018, f"A{n}", "B1", n) for n in range(30)]


def reviews_of(path: Path, limit: float = 0.01) -> tuple[list[Review], Dump]:
    dump = Dump(path, limit)
    return list(dump.reviews()), dump


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("suffix", ["json.gz", "json"])
def test_a_review_of_each_year(year: int, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x.{suffix}", [review(year, "AUSER", "B00X", 1_400_000_000), b"\n"])
    found, dump = reviews_of(path)
    time = 1_400_000_000.923 if year == 2023 else 1_400_000_000
    assert found == [Review("AUSER", "B00X", time)]
    assert (dump.lines, dump.faults.total(), dump.first) == (1, 0, "")


@pytest.mark.parametrize("year", YEARS)
def test_metadata_of_each_year(year: int, tmp_path: Path) -> None:
    title = "Dr. Seuss' &quot;Puzzle&quot; &amp;amp; <b>more</b>\tnow\u0000"
    path = write(tmp_path / "meta.gz", [metadata(year, "B1", title, ["Toys & Games", "Big|Toys"])])
    assert list(Dump(path, 0).items()) == [
        Item("B1", 'Dr. Seuss\' "Puzzle" & more now', ["Toys & Games", "Big/Toys"], "Ravensburger")
    ]


def items_of(tmp_path: Path, *lines: bytes) -> list[Item]:
    return list(Dump(write(tmp_path / "meta.json.gz", lines), 0).items())


def test_nested_categories_are_one_list_without_repetition(tmp_path: Path) -> None:
    paths = [["Toys", "Games", "Card Games"], ["Toys", "Hobbies"], []]
    (item,) = items_of(tmp_path, metadata(2014, "B1", categories=paths))
    assert item.categories == ["Toys", "Games", "Card Games", "Hobbies"]


@pytest.mark.parametrize(
    ("title", "text"),
    [
        (["A", "train", None], "A train"),
        ([], ""),
        (None, ""),
        (7, ""),
        ("var aPageStart = (new Date()).getTime();", ""),
        ("3 < 5 and 5 > 3", "3 < 5 and 5 > 3"),
        ("a\ud800b", "a b"),
        ("x" * 100_000, "x" * 2000),
        ("<" * 50_000, "<" * 2000),
        ("日本 <|it-5|>", "日本 <|it-5|>"),
    ],
)
def test_odd_titles(title: Any, text: str, tmp_path: Path) -> None:
    (item,) = items_of(tmp_path, metadata(2023, "B1", title))
    assert item.title == text


def test_a_brand_may_stand_among_the_details(tmp_path: Path) -> None:
    line = b'{"parent_asin": "B1", "title": "t", "store": null, "details": {"Brand": "Lego"}}\n'
    assert items_of(tmp_path, line) == [Item("B1", "t", [], "Lego")]


def test_nothing_in_a_line_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    code = f"{{'asin': 'B1', 'title': __import__('pathlib').Path({str(trap)!r}).touch()}}\n"
    with pytest.raises(DataError, match="none of its first 1 lines is a row of metadata"):
        items_of(tmp_path, code.encode())
    assert not trap.exists()


BAD: list[tuple[bytes, str]] = [
    (b"{", "neither JSON nor a Python literal"),
    (b"<html>Access Denied</html>", "neither JSON nor a Python literal"),
    (b"\xff\xfe\x00", "neither JSON nor a Python literal"),
    (b"{'a': " + b"(" * 5000, "neither JSON nor a Python literal"),
    (b"[" * 100_000, "neither JSON nor a Python literal"),
    (b'["reviewerID"]', "no object"),
    (b'{"asin": "B1", "unixReviewTime": 1}', "no user"),
    (b'{"reviewerID": "A1", "unixReviewTime": 1}', "no item"),
    (b'{"reviewerID": "A 1", "asin": "B1", "unixReviewTime": 1}', "no user"),
    (b'{"reviewerID": "A\\t1", "asin": "B1", "unixReviewTime": 1}', "no user"),
    (b'{"reviewerID": "A1", "asin": 5, "unixReviewTime": 1}', "no item"),
    (b'{"reviewerID": "A1", "asin": "B1"}', "no time"),
    (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": "1"}', "no time"),
    (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": true}', "no time"),
    (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": NaN}', "no time"),
    (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": -1}', "no time"),
    (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1' + b"0" * 900 + b"}", "no time"),
    (b'{"reviewerID": "nan", "asin": "B1", "unixReviewTime": 1}', "user 'nan', which RecBole"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_malformed_line_is_counted_and_skipped(line: bytes, reason: str, tmp_path: Path) -> None:
    found, dump = reviews_of(write(tmp_path / "x.gz", [*GOOD, line + b"\n", *GOOD]))
    assert len(found) == 60 and dump.lines == 61
    assert dump.faults.total() == 1 and dump.first.startswith(f"line 31: {reason}")


def test_a_line_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE", 1000)
    long = b'{"x": "' + b"y" * 2993 + b'"}\n'
    found, dump = reviews_of(write(tmp_path / "x.gz", [GOOD[0], long, GOOD[1], b"z" * 5000]))
    assert [row.user for row in found] == ["A0", "A1"]
    assert dump.lines == 4 and list(dump.faults) == ["longer than 1000 bytes"]
    for length in (999, 1000, 1001, 2000):  # where a line ends just where a piece does
        lines = [b"{" * (length - 1) + b"\n", *GOOD]
        assert len(reviews_of(write(tmp_path / "y.gz", lines))[0]) == 30


def test_too_many_malformed_lines_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gz", [*GOOD * 10, *[b"{\n"] * 11])
    with pytest.raises(DataError, match=r"x\.gz: 11 of 311 lines are malformed \(line 301: neith"):
        reviews_of(path)
    assert len(reviews_of(path, limit=0.04)[0]) == 300
    path = write(tmp_path / "x.gz", [*GOOD, b"{\n"])
    assert len(reviews_of(path)[0]) == 30
    with pytest.raises(DataError, match="--max_malformed"):
        reviews_of(path, limit=0)


def test_another_kind_of_file_is_refused_early(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gz", [metadata(2014, f"B{n}") for n in range(5000)])
    with pytest.raises(DataError, match=r"none of its first 1000 lines is a review \(line 1: no u"):
        reviews_of(path)
    with pytest.raises(DataError, match="holds no line"):
        reviews_of(write(tmp_path / "x.gz", [b"\n"]))
    with pytest.raises(DataError, match=r"Cannot read .*nowhere: No such file"):
        reviews_of(tmp_path / "nowhere")


@pytest.mark.parametrize("harm", ["cut", "flipped", "header"])
def test_a_damaged_file_is_named_with_the_line(harm: str, tmp_path: Path) -> None:
    content = gzip.compress(b"".join(review(2018, f"A{n}", "B", n * n) for n in range(5000)))
    middle = len(content) // 2
    if harm == "cut":
        content = content[:middle]
    elif harm == "flipped":
        content = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    else:
        content = content[:2] + b"\x01" + content[3:]
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(BrokenDump, match=r"x\.gz is damaged after line \d+ .*download it again"):
        reviews_of(tmp_path / "x.gz")
