"""One of RecBole's atomic files, checked without loading it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_idiomoe.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")

# What pandas reads as missing; RecBole then drops the row without a word.
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}

# Python's float() takes more, as 1_000, which pandas does not.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST = float(np.finfo(np.float32).max)
_LONGEST_LINE = 2**24  # characters; a file without line ends is not held in memory


class AtomicFile:
    """A table with a header of ``name:type`` columns.

    Args:
        path: the file.
        separator: what stands between two fields.
        encoding: how its text is encoded.

    Attributes:
        columns: types by name, in the order of the file.

    Raises:
        DataError: the file is not there, cannot be decoded, or its header is not one.
    """

    def __init__(self, path: Path, separator: str, encoding: str | None) -> None:
        self.path = path
        self.separator = separator
        self.encoding = encoding or "utf-8"
        header = next(iter(self._lines()), "")
        if not header:
            raise DataError(f"{path} is empty; its first line must name columns as name:type.")
        self.columns: dict[str, str] = {}
        for text in header.split(separator):
            name, kind = self._column(text)
            if name in self.columns:
                raise DataError(f"{path}: column {name!r:.60} is there twice; rename one.")
            self.columns[name] = kind

    def check_columns(
        self, needed: Sequence[str], load_col: Mapping[str, Any] | None, part: str
    ) -> None:
        """Columns that are needed, or that ``load_col[part]`` asks for, exist and are loaded.

        Raises:
            DataError: one does not, or is not.
        """
        loaded = None if load_col is None else load_col.get(part, [])
        listed = [] if loaded is None or loaded == "*" else list(loaded)
        for name in [*needed, *listed]:
            if name not in self.columns:
                raise DataError(
                    f"{self.path} has no column {name!r}, only {self._named()}; "
                    "mend the settings that name it, or the file."
                )
        for name in needed:
            if loaded is not None and loaded != "*" and name not in listed:
                raise DataError(
                    f"{self.path}: column {name!r} is needed but not loaded; add it to "
                    f"load_col: {{{part}: [{', '.join([*listed, name])}]}}."
                )

    def loaded_numbers(
        self, load_col: Mapping[str, Any] | None, part: str, seq_separator: str
    ) -> dict[str, str | None]:
        """Columns of numbers that ``load_col[part]`` asks for, and what separates several."""
        loaded = "*" if load_col is None else load_col.get(part, [])
        return {
            name: seq_separator if kind == "float_seq" else None
            for name, kind in self.columns.items()
            if kind in ("float", "float_seq") and (loaded == "*" or name in (loaded or []))
        }

    def check_types(self, names: Sequence[str], kind: str) -> None:
        """The columns ``names`` are of type ``kind``: RecBole would number a token timestamp.

        Raises:
            DataError: one is not.
        """
        for name in names:
            if self.columns[name] != kind:
                raise DataError(
                    f"{self.path}: {name}:{self.columns[name]} in the header must be "
                    f"{name}:{kind}; mend the header."
                )

    def check_rows(
        self,
        ids: Sequence[str],
        number: str | None = None,
        numbers: Mapping[str, str | None] | None = None,
    ) -> None:
        """There is a row, each has a field per column, a name in ``ids``, a number in ``number``.

        Args:
            numbers: further columns of numbers, in which they may be missing, and what separates
                several in a field; None: there is one.

        Raises:
            DataError: the first row that does not do.
        """
        lines, empty = iter(self._lines()), True
        next(lines)
        names = list(self.columns)
        id_columns = [names.index(name) for name in ids]
        column = None if number is None else names.index(number)
        separators = {names.index(name): by for name, by in (numbers or {}).items()}
        for at, line in enumerate(lines, start=2):
            if not line:
                continue
            empty = False
            row = line.split(self.separator)
            fault = ""
            if len(row) != len(names):
                fault = f"{len(row)} fields, but the header names {len(names)}"
            elif column is not None and (wrong := _wrong_number(row[column])):
                fault = f"{number} is {row[column][:60]!r}, {wrong}"
            elif "\0" in line:
                fault = "a NUL character, at which pandas ends the field"
            elif len(line) > csv.field_size_limit() < max(map(len, row)):
                fault = f"a field of more than {csv.field_size_limit()} characters"
            else:
                for i in id_columns:
                    if row[i] in MISSING:
                        fault = f"{names[i]} is {row[i]!r}, which RecBole takes for missing"
                for i, separator in separators.items():
                    for part in [row[i]] if separator is None else row[i].split(separator):
                        if part not in MISSING and (wrong := _wrong_number(part)):
                            fault = f"column {names[i]!r:.60} is {part[:60]!r}, {wrong}"
            if fault:
                raise DataError(f"{self.path}, line {at}: {fault}; mend that line.")
        if empty:
            raise DataError(f"{self.path} has a header but no rows; give it at least one.")

    def _lines(self) -> Any:
        """The lines without their ends; faults of reading become a :class:`DataError`."""
        try:
            with open(self.path, encoding=self.encoding) as file:
                for at, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), start=1):
                    if len(line) == _LONGEST_LINE:
                        raise DataError(
                            f"{self.path}, line {at}: {_LONGEST_LINE} characters and more; that "
                            "is no table of rows, give another file."
                        )
                    yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}, line {self._undecodable_line()}: not {self.encoding}; save the "
                "file in that encoding, or name its own with --encoding."
            ) from error
        except (OSError, LookupError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"Cannot read {self.path}: {reason}.") from error

    def _named(self) -> str:
        """The first columns, on one line whatever they hold."""
        first = list(self.columns)[:10]
        names = [name[:60] if name.isprintable() else f"{name!r:.60}" for name in first]
        return ", ".join(names) + (", ..." if len(self.columns) > 10 else "")

    def _undecodable_line(self) -> int:
        content = self.path.read_bytes()
        try:
            content.decode(self.encoding)
        except UnicodeDecodeError as error:
            return content[: error.start].count(b"\n") + 1
        return 1

    def _column(self, text: str) -> tuple[str, str]:
        if text.startswith("\ufeff"):
            raise DataError(
                f"{self.path} starts with a byte-order mark; save it without, or set "
                "encoding to utf-8-sig."
            )
        name, colon, kind = text.partition(":")
        if not (name and colon and kind in _TYPES):
            raise DataError(
                f"{self.path}: {text[:60]!r} in the header is not name:type with a type of "
                f"{', '.join(_TYPES)} (fields are separated by {self.separator!r})."
            )
        return name, kind


def _wrong_number(text: str) -> str:
    """What keeps ``text`` from being a number of RecBole's, which has 32 bits; "": nothing."""
    if not _NUMBER.fullmatch(text):
        return "not a number"
    return "" if abs(float(text)) <= _LARGEST else f"a number above {_LARGEST:.4g}"
