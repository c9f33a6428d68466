"""One of RecBole's atomic files, checked without loading it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_idiomoe.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")

# What pandas reads as missing; RecBole then drops the row without a word.
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}


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
                raise DataError(f"{path}: column {name!r} is there twice; rename one.")
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
                    f"{self.path} has no column {name!r}, only {', '.join(self.columns)}; "
                    "mend the settings that name it, or the file."
                )
        for name in needed:
            if loaded is not None and loaded != "*" and name not in listed:
                raise DataError(
                    f"{self.path}: column {name!r} is needed but not loaded; add it to "
                    f"load_col: {{{part}: [{', '.join([*listed, name])}]}}."
                )

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

    def check_rows(self, ids: Sequence[str], number: str | None = None) -> None:
        """There is a row, each has a field per column, a name in ``ids``, a number in ``number``.

        Raises:
            DataError: the first row that does not do.
        """
        lines, empty = iter(self._lines()), True
        next(lines)
        names = list(self.columns)
        id_columns = [names.index(name) for name in ids]
        column = None if number is None else names.index(number)
        for at, line in enumerate(lines, start=2):
            if not line:
                continue
            empty = False
            row = line.split(self.separator)
            fault = ""
            if len(row) != len(names):
                fault = f"{len(row)} fields, but the header names {len(names)}"
            elif column is not None and not _is_number(row[column]):
                fault = f"{number} is {row[column]!r}, not a number"
            elif "\0" in line:
                fault = "a NUL character, at which pandas ends the field"
            elif len(line) > csv.field_size_limit() < max(map(len, row)):
                fault = f"a field of more than {csv.field_size_limit()} characters"
            else:
                for i in id_columns:
                    if row[i] in MISSING:
                        fault = f"{names[i]} is {row[i]!r}, which RecBole takes for missing"
            if fault:
                raise DataError(f"{self.path}, line {at}: {fault}; mend that line.")
        if empty:
            raise DataError(f"{self.path} has a header but no rows; give it at least one.")

    def _lines(self) -> Any:
        """The lines without their ends; faults of reading become a :class:`DataError`."""
        try:
            with open(self.path, encoding=self.encoding) as file:
                for line in file:
                    yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}, line {self._undecodable_line()}: not {self.encoding}; save the "
                "file in that encoding, or name its own with --encoding."
            ) from error
        except (OSError, LookupError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"Cannot read {self.path}: {reason}.") from error

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


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
