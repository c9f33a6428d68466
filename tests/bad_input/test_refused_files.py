"""Dataset files that are refused in one line, with nothing left behind."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.stranger import ITEMS, ROWS, Stranger, append, both


@both
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inter": lambda _: bytes(range(256)) * 20}, ["toy.inter, line 2", "not utf-8"]),
        ({"inter": lambda _: b"\0" * 500}, ["toy.inter", "in the header"]),
        ({"inter": lambda text: text[:-9]}, ["toy.inter, line 49", "2 fields", "fix that line"]),
        ({"inter": lambda text: text.encode("utf-16")}, ["line 1", "not utf-8", "--encoding"]),
        ({"item": lambda text: text.replace("m", "é").encode("latin-1")}, ["toy.item", "not utf"]),
        ({"inter": lambda text: text.replace("stamp", "")}, ["no column 'timestamp'"]),
        (
            {"inter": lambda text: text.replace(":float", ":token")},
            ["line 2", "must be timestamp:float"],
        ),
        ({"inter": lambda text: text.replace("item_id:token", "item_id:float")}, ["item_id:token"]),
        ({"item": lambda text: text.replace("item_id:token", "item_id:float")}, ["item_id:token"]),
        ({"inter": append("u1\ti1\tnoon\n")}, ["line 50", "timestamp is 'noon', not a number"]),
        ({"inter": append("u1\ti1\tnan\n")}, ["line 50", "timestamp is 'nan', not a number"]),
        ({"inter": append("u1\ti1\t1e39\n")}, ["line 50", "timestamp is '1e39'", "above 3.403e"]),
        ({"inter": append("u1\ti1\t1_0\n")}, ["line 50", "timestamp is '1_0', not a number"]),
        ({"inter": lambda _: "x" * 2**24}, ["toy.inter, line 1", "16777216 characters and more"]),
        ({"item": lambda t: t.replace("le:token", "le:float")}, ["toy.item, line 2", "'title' is"]),
        ({"inter": append("u1\ti1\tinf\n")}, ["line 50", "timestamp is 'inf', not a number"]),
        ({"inter": append("u1\ti1\t\n")}, ["line 50", "timestamp is '', not a number"]),
        ({"inter": append("\ti1\t5\n")}, ["line 50", "user_id is ''"]),
        ({"inter": append("u1\tNA\t5\n")}, ["line 50", "item_id is 'NA'", "takes for missing"]),
        ({"inter": append("u1\ta\0b\t5\n")}, ["line 50", "NUL"]),
        ({"inter": append("u1\ti1\n")}, ["line 50", "2 fields"]),
        ({"inter": append("u1\ti1\t5\t6\n")}, ["line 50", "4 fields"]),
        ({"inter": lambda _: ""}, ["toy.inter is empty"]),
        ({"inter": lambda text: text.splitlines()[0] + "\n\n\n"}, ["header but no rows"]),
        ({"item": lambda text: text.splitlines()[0]}, ["toy.item has a header but no rows"]),
        ({"item": append("i1\ta\rb\tc\n")}, ["toy.item, line 12", "2 fields"]),
        ({"item": append("\tnobody\tc\n")}, ["toy.item, line 12", "item_id is ''"]),
        ({"item": append(f"j\t{'x' * 200_000}\tc\n")}, ["line 12", "more than 131072 characters"]),
        ({"item": lambda text: text.replace("\ni", "\nj")}, ["nothing is left", ".item"]),
        ({"rows": ROWS[::6]}, ["no user has 3 interactions"]),
        ({"rows": [row for n, row in enumerate(ROWS) if n % 6 < 2]}, ["no user has 3 inter"]),
        ({"rows": [row for n, row in enumerate(ROWS) if n % 6 < 3]}, ["left for validation"]),
        ({"rows": [(u, "i0", t) for u, _, t in ROWS], "items": ITEMS[:1]}, ["topk", "the 1 items"]),
    ],
)
def test_a_bad_file_is_refused(
    changes: dict[str, Any], words: list[str], model: str, stranger: Stranger
) -> None:
    stranger.files(**changes)
    message = stranger.refused(model)
    assert all(word in message for word in words), message


@both
def test_a_missing_file_is_named(model: str, stranger: Stranger) -> None:
    stranger.files()
    folder = Path("dataset/toy")
    (folder / "toy.item").rename("item")
    assert "load_col and item_text_fields" in stranger.refused(model)
    (folder / "toy.item").mkdir()
    assert "Is a directory" in stranger.refused(model)
    (folder / "toy.inter").unlink()
    assert "holds no toy.inter" in stranger.refused(model)
    (folder / "toy.inter").mkdir()
    assert "holds no toy.inter" in stranger.refused(model)
    shutil.rmtree(folder)
    assert "unknown dataset 'toy'" in stranger.refused(model)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_named(stranger: Stranger) -> None:
    stranger.files()
    Path("dataset/toy/toy.inter").chmod(0)
    assert "Permission denied" in stranger.refused("SASRec")
