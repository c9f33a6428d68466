"""Whatever two files hold: they are read right, or one line names the file, the row, the field."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.bad_input.outcomes import (
    HEADER,
    ITEM_HEADER,
    OF_THE_WHOLE,
    check_histories,
    first_fault,
    in_order,
    read,
)
from tests.bad_input.stranger import ITEMS, ROWS

# In a field of a line: no separators, no line ends of Python's universal kind.
FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), max_size=8)
ODD_IDS = ["", " ", "NA", "nan", "None", "[PAD]", "0", "1", "1.0", "01", "1e3", "True", "i1", " i1"]
ODD_IDS += ["#", '"', '"i1"', "'", "\\", "<|it-i1|>", "|", ",", "\u2028", "\x85", "\x1c", "\ufeff"]
ID = st.one_of(st.sampled_from([f"i{n}" for n in range(9)]), st.sampled_from(ODD_IDS), FIELD)
ODD_TIMES = ["", "nan", "NaN", "inf", "-inf", "1e39", "1e400", "1e-50", "-0", "1_000", " 5"]
ODD_TIMES += [
    "0x10",
    "\u0661\u0662",
    "5,0",
    "1.5.2",
    "noon",
    "True",
    "+7",
    ".5",
    "5.",
    "1E3",
    "--1",
]
TIME = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(repr),
    st.sampled_from(ODD_TIMES),
    FIELD,
)
GOOD_TIME = st.one_of(
    st.integers(0, 5).map(str),  # ties
    st.integers(-(10**12), 10**12).map(str),
    st.floats(-1e30, 1e30).map(repr),
)


def inter(rows: list[tuple[str, ...]]) -> str:
    return "\n".join([HEADER, *map("\t".join, rows)])


GOOD = inter([(u, i, str(t)) for u, i, t in ROWS])
GOOD_ITEM = "\n".join([ITEM_HEADER, *map("\t".join, ITEMS)])


def check_refusal(said: str, text: str, name: str = "toy.inter") -> None:
    """``said`` is right of a file whose header is good."""
    line = re.search(rf"{re.escape(name)}, line (\d+): (.*)", said)
    fault = first_fault(text, "timestamp" if name == "toy.inter" else None)
    if line is None:
        whole = any(part in said for part in OF_THE_WHOLE) or "no rows" in said
        assert whole and fault is None, said
    else:
        assert int(line[1]) == fault, (said, fault)


users = st.sampled_from(["u1", "u2", "u3", "1", "\u00e9"])


@given(st.lists(st.tuples(users, ID, st.one_of(GOOD_TIME, TIME)), max_size=25))
@example([("u1", f"i{n % 3}", "7") for n in range(60)])
@example([("u1", "i1", when) for when in ("1e39", "2", "3")])
@example([("u1", "i1", when) for when in ("1_000", "2", "3")])
@example([("u1", "[PAD]", when) for when in "123"])
@pytest.mark.parametrize("model", ["IDIOMoE", "SASRec"])
def test_any_rows(model: str, rows: list[tuple[str, str, str]]) -> None:
    text = inter(rows)
    found = read(text.encode(), model=model)
    if isinstance(found, str):
        check_refusal(found, text)
        return
    assert first_fault(text, "timestamp") is None
    rows = in_order(rows)
    assert [row[:2] for row in found.rows] == [row[:2] for row in rows]
    expected = [float(when) for *_, when in rows]
    np.testing.assert_allclose([row[2] for row in found.rows], expected, rtol=1e-6)
    check_histories(found)


@given(
    st.lists(st.tuples(users, st.sampled_from(["i1", "i2", "i3"]), GOOD_TIME), min_size=3),
    st.randoms(use_true_random=False),
    st.integers(1, 3),
)
def test_good_rows_are_never_refused(rows: list, shuffled: object, copies: int) -> None:
    """Duplicated rows, ties, times in any order."""
    rows = rows * copies
    shuffled.shuffle(rows)  # type: ignore[attr-defined]
    found = read(inter(rows).encode())
    if isinstance(found, str):
        assert any(part in found for part in OF_THE_WHOLE[:1]), found
        assert max(map([u for u, *_ in rows].count, {u for u, *_ in rows})) < 3
    else:
        assert len(found.rows) == len(rows)
        check_histories(found)


COLUMN = st.one_of(
    st.sampled_from([*HEADER.split("\t"), *ITEM_HEADER.split("\t")]),
    st.builds("{}:{}".format, FIELD, st.sampled_from(["token", "float", "token_seq", "x", ""])),
    st.builds(
        "{}:{}".format,
        st.sampled_from(["user_id", "item_id", "timestamp", "title", "categories"]),
        st.sampled_from(["token", "float", "token_seq", "float_seq", "TOKEN", "int", ""]),
    ),
    FIELD,
)


@given(st.lists(COLUMN, max_size=5), st.sampled_from(["inter", "item"]))
@example(["user_id:token", "item_id:token", "timestamp:token"], "inter")
@example(["item_id:token", "title:float", "categories:token_seq"], "item")
@example(["item_id:token", "title:token_seq", "categories:float_seq"], "item")
@example(["item_id:token", "title:token", "categories:token"], "item")
def test_any_header(columns: list[str], part: str) -> None:
    """Missing columns, wrong types, more columns than are wanted, in any order."""
    good = GOOD if part == "inter" else GOOD_ITEM
    old = [column.split(":")[0] for column in good.split("\n")[0].split("\t")]
    new = [column.split(":")[0] for column in columns]
    lines = [dict(zip(old, line.split("\t"), strict=True)) for line in good.split("\n")[1:]]
    body = ["\t".join(line.get(name, "x") for name in new) for line in lines]
    content = "\n".join(["\t".join(columns), *body]).encode()
    found = read(content, GOOD_ITEM.encode()) if part == "inter" else read(GOOD.encode(), content)
    if isinstance(found, str):
        assert f"toy.{part}" in found, found
    else:
        assert set(old) <= set(new) == {*new}
        assert found.rows == ROWS  # which are in order


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, overwritten, filled up: what disks and transfers do."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(len(content), start + 40)))
    odd = st.sampled_from([b"\0" * 30, b"\r\n", b"\t", b""])
    put = draw(st.one_of(st.binary(max_size=40), odd))
    return content[:start] + put + (b"" if draw(st.booleans()) else content[stop:])


@given(damaged(GOOD.encode()), damaged(GOOD_ITEM.encode()), st.sampled_from(["inter", "item"]))
@example(b"", b"", "inter")
@example(GOOD.encode("utf-16"), b"", "inter")
@example(b"\x1f\x8b\x08\x00" + bytes(range(256)), b"", "inter")
def test_damaged_files(inter_bytes: bytes, item_bytes: bytes, part: str) -> None:
    inter_bytes = inter_bytes if part == "inter" else GOOD.encode()
    item_bytes = item_bytes if part == "item" else GOOD_ITEM.encode()
    found = read(inter_bytes, item_bytes)
    if isinstance(found, str):
        whole = any(text in found for text in OF_THE_WHOLE)
        assert f"toy.{part}" in found or whole, found
        return
    # What is read of a damaged file is what it says.
    check_histories(found)
    known = {line.split("\t")[0] for line in _lines(item_bytes)}
    written = [line.split("\t") for line in _lines(inter_bytes) if line]
    kept = in_order([(u, i, t) for u, i, t in written if i in known])
    assert [row[:2] for row in found.rows] == [row[:2] for row in kept]


def _lines(content: bytes) -> list[str]:
    text = content.decode().replace("\r\n", "\n").replace("\r", "\n")
    return text.split("\n")[1:]


@given(st.sets(ID.filter(lambda i: i not in ("", "[PAD]")), max_size=8), st.sets(st.integers(0, 9)))
def test_items_without_interactions_and_interactions_without_items(
    more: set[str], left_out: set[int]
) -> None:
    kept = [item for n, item in enumerate(ITEMS) if n not in left_out]
    rows = kept + [(name, "nobody's", "") for name in sorted(more) if name not in dict_of(ITEMS)]
    text = "\n".join([ITEM_HEADER, *map("\t".join, rows)])
    found = read(GOOD.encode(), text.encode())
    known = {i for i, *_ in rows}
    if isinstance(found, str):
        check_item_refusal(found, text, known)
        return
    assert found.rows == [row for row in ROWS if row[1] in known]
    names = found.dataset.field2id_token["item_id"][1:].tolist()
    assert len(names) == len(set(names)) and known <= set(names)
    check_histories(found)


def dict_of(items: list[tuple[str, ...]]) -> set[str]:
    return {item for item, *_ in items}


def check_item_refusal(said: str, text: str, known: set[str]) -> None:
    if "toy.item" in said and "line" in said:
        check_refusal(said, text, "toy.item")
    else:
        assert not known & dict_of(ITEMS) or "no user has 3" in said or "no rows" in said, said
