"""Checks of RecBole's atomic files, without loading them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_idiomoe.base.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")

# Values that pandas reads as missing; RecBole silently drops their rows.
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}

# Stricter than Python's float(), which accepts 1_000; pandas does not.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST = float(np.finfo(np.float32).max)
_BLOCK = 2**20  # characters that are checked at a time
_LONGEST_LINE = 2**24  # characters, so that a file without line ends is not held in memory


class AtomicFile:
    """A table with a header of ``name:type`` columns.

    Args:
        path: the file.
        separator: the separator of fields.
        encoding: the text encoding; None: UTF-8.

    Attributes:
        columns: types of the columns by name, in the order of the file.

    Raises:
        DataError: the file cannot be read or decoded, or its header is not valid.
    """

    def __init__(self, path: Path, separator: str, encoding: str | None) -> None:
        self.path = path
        self.separator = separator
        self.encoding = encoding or "utf-8"
        _, begin = next(self._blocks(), (1, ""))
        header = begin.partition("\n")[0]
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
        """Check that the columns in ``needed`` and ``load_col[part]`` exist and are loaded.

        Raises:
            DataError: a column does not exist or is not loaded.
        """
        loaded = None if load_col is None else load_col.get(part, [])
        listed = [] if loaded is None or loaded == "*" else list(loaded)
        for name in [*needed, *listed]:
            if name not in self.columns:
                raise DataError(
                    f"{self.path} has no column {name!r}, only {self._named()}; "
                    "fix the settings that name it, or the file."
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
        """The loaded columns of numbers: the separator of a list, None for a single number."""
        loaded = "*" if load_col is None else load_col.get(part, [])
        return {
            name: seq_separator if kind == "float_seq" else None
            for name, kind in self.columns.items()
            if kind in ("float", "float_seq") and (loaded == "*" or name in (loaded or []))
        }

    def check_types(self, names: Sequence[str], kind: str) -> None:
        """Check that the columns ``names`` have the type ``kind``.

        RecBole would replace timestamps of type ``token`` by consecutive ids.

        Raises:
            DataError: a column has another type.
        """
        for name in names:
            if self.columns[name] != kind:
                raise DataError(
                    f"{self.path}: {name}:{self.columns[name]} in the header must be "
                    f"{name}:{kind}; fix the header."
                )

    def check_rows(
        self,
        ids: Sequence[str],
        number: str | None = None,
        numbers: Mapping[str, str | None] | None = None,
    ) -> None:
        """Check that there are rows, and that every row is valid.

        Args:
            ids: columns in which every row needs a value.
            number: a column in which every row needs a number.
            numbers: other columns of numbers, which may be missing, with the separator of a list
                or None for a single number.

        Raises:
            DataError: there are no rows, or one is not valid; the message names the first.
        """
        fault_of = self._row_check(ids, number, numbers or {})
        suspicious = self._suspicious(ids, number, numbers or {})
        empty = True
        for first, block in self._blocks():
            begin = 0 if first > 1 else (block.find("\n") + 1 or len(block))
            empty = empty and not block[begin:].strip("\n")
            for found in suspicious.finditer(block, begin):
                begin = found.start()
                end = block.find("\n", begin)
                line = block[begin : len(block) if end < 0 else end]
                if line and (fault := fault_of(line)):
                    at = first + block.count("\n", 0, begin)
                    raise DataError(f"{self.path}, line {at}: {fault}; fix that line.")
        if empty:
            raise DataError(f"{self.path} has a header but no rows; give it at least one.")

    def _row_check(
        self, ids: Sequence[str], number: str | None, numbers: Mapping[str, str | None]
    ) -> Callable[[str], str]:
        """A function that returns what is wrong with a row, or an empty text."""
        names = list(self.columns)
        id_columns = [names.index(name) for name in ids]
        column = None if number is None else names.index(number)
        separators = {names.index(name): by for name, by in numbers.items()}

        def fault_of(line: str) -> str:
            row = line.split(self.separator)
            if len(row) != len(names):
                return f"{len(row)} fields, but the header names {len(names)}"
            if column is not None and (wrong := _wrong_number(row[column])):
                return f"{number} is {row[column][:60]!r}, {wrong}"
            if "\0" in line:
                return "a NUL character, at which pandas ends the field"
            if len(line) > csv.field_size_limit() < max(map(len, row)):
                return f"a field of more than {csv.field_size_limit()} characters"
            fault = ""
            for i in id_columns:
                if row[i] in MISSING:
                    fault = f"{names[i]} is {row[i]!r}, which RecBole takes for missing"
            for i, separator in separators.items():
                for part in [row[i]] if separator is None else row[i].split(separator):
                    if part not in MISSING and (wrong := _wrong_number(part)):
                        fault = f"column {names[i]!r:.60} is {part[:60]!r}, {wrong}"
            return fault

        return fault_of

    def _suspicious(
        self, ids: Sequence[str], number: str | None, numbers: Mapping[str, str | None]
    ) -> re.Pattern[str]:
        """A pattern that matches the start of lines to check; ten times faster than all lines."""
        if len(self.separator) != 1:
            return re.compile("^", re.MULTILINE)
        separator = re.escape(self.separator)
        anything = rf"[^{separator}\n\0]{{0,{min(4096, csv.field_size_limit())}}}"
        missing = "|".join(map(re.escape, sorted(MISSING)))
        plain_number = r"[+-]?\d{1,30}(?:\.\d{1,30})?"
        plain = dict.fromkeys(self.columns, anything)
        for name, by in numbers.items():
            if by is None:
                plain[name] = f"(?:{plain_number})?"
            else:
                plain[name] = ""  # every list of numbers is checked
        for name in ids:
            plain[name] = rf"(?!(?:{missing})(?:{separator}|$)){anything}"
        if number is not None:
            plain[number] = plain_number
        return re.compile(f"^(?!{separator.join(plain.values())}$)", re.MULTILINE | re.ASCII)

    def _blocks(self) -> Iterator[tuple[int, str]]:
        """Blocks of whole lines, each with the number of its first line, from 1.

        Raises:
            DataError: the file cannot be read or decoded, or has too long a line.
        """
        at = 1
        try:
            with open(self.path, encoding=self.encoding) as file:
                while block := file.read(_BLOCK):
                    block += file.readline(_LONGEST_LINE)
                    if len(block) >= _LONGEST_LINE:
                        at += block.count("\n", 0, _BLOCK)
                        raise DataError(
                            f"{self.path}, line {at}: {_LONGEST_LINE} characters and more; that "
                            "is no table of rows, give another file."
                        )
                    yield at, block
                    at += block.count("\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}, line {self._undecodable_line()}: not {self.encoding}; save the "
                "file in that encoding, or name its own with --encoding."
            ) from error
        except (OSError, LookupError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"Cannot read {self.path}: {reason}.") from error

    def _named(self) -> str:
        """The names of the first columns on one line, escaped if they are not printable."""
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
    """Why ``text`` is not a number of 32 bits, as RecBole needs it; empty if it is one."""
    if not _NUMBER.fullmatch(text):
        return "not a number"
    return "" if abs(float(text)) <= _LARGEST else f"a number above {_LARGEST:.4g}"
