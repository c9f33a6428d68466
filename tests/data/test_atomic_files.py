"""Rows that one regular expression lets pass are those that a look at each lets pass."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.atomic_files import AtomicFile

WORDS = ["a", "i 1", "é", "NA", "NAN", "nan", "", " ", '"', "a" * 4097, "\0"]
NUMBERS = ["1", "-2.5", "+3", ".5", "4.", "1e5", "1e400", "1_000", "9" * 31, "٣"]
FIELDS = st.sampled_from([*WORDS, *NUMBERS, "1.5\r", "x\x85y", "\u2028", "a b\v"])


def verdict(path: Path, **options: Any) -> str:
    try:
        AtomicFile(path, options.pop("separator", "\t"), "utf-8").check_rows(**options)
    except DataError as error:
        return str(error)
    return "good"


@given(
    rows=st.lists(st.lists(FIELDS, min_size=1, max_size=4), max_size=6),
    ids=st.sampled_from([["u"], ["u", "i"], []]),
    number=st.sampled_from(["t", None]),
    numbers=st.sampled_from([{}, {"t": None}, {"x": " "}, {"t": None, "x": None}]),
    ended=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fast_look_and_the_close_one_agree(
    rows: list[list[str]],
    ids: list[str],
    number: str | None,
    numbers: dict[str, str | None],
    ended: bool,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.inter"
    good = ["a\tb\t1\t2"] * 2  # what stands around what is looked at closely
    lines = [*good, *("\t".join(row) for row in rows), *good]
    text = "\n".join(["u:token\ti:token\tt:float\tx:float", *lines]) + "\n" * ended
    path.write_bytes(text.encode())
    options: dict[str, Any] = {"ids": ids, "number": number, "numbers": numbers}
    fast = verdict(path, **options)
    with monkeypatch.context() as patch:
        patch.setattr(AtomicFile, "_suspicious", lambda *_: re.compile("^", re.MULTILINE))
        assert verdict(path, **options) == fast


def test_plain_rows_are_not_looked_at_closely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.inter"
    path.write_text("u:token\ti:token\tt:float\n" + "A1\tnavy\t1400000000.5\n" * 9 + "b\tc\t1e3\n")
    looked_at = []
    close_look = AtomicFile._fault

    def counting(file: AtomicFile, line: str, *rules: Any) -> str:
        looked_at.append(line)
        return close_look(file, line, *rules)

    monkeypatch.setattr(AtomicFile, "_fault", counting)
    assert verdict(path, ids=["u", "i"], number="t", numbers={"t": None}) == "good"
    assert looked_at == ["b\tc\t1e3"]


def test_the_line_is_named_beyond_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recbole_idiomoe.data.atomic_files._BLOCK", 16)
    path = tmp_path / "x.inter"
    path.write_text("u:token\tt:float\n" + "user\t1\n" * 50 + "\n" + "user\tone\n" + "user\t1\n")
    assert ", line 53: t is 'one', not a number" in verdict(path, ids=["u"], number="t")
    assert verdict(path, ids=["u"], number="t", separator="::") != "good"


def test_a_separator_of_several_characters(tmp_path: Path) -> None:
    path = tmp_path / "x.inter"
    path.write_text("u:token::t:float\na::1\n\nb::2\n")
    assert verdict(path, ids=["u"], number="t", separator="::") == "good"
    path.write_text("u:token::t:float\na::1\nb\n")
    assert ", line 3: 1 fields" in verdict(path, ids=["u"], number="t", separator="::")
