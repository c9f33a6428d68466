"""One of RecBole's atomic files, checked without loading it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_idiomoe.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")


class AtomicFile:
    """A table with a header of ``name:type`` columns.

    Args:
        path: the file.
        separator: what stands between two fields.
        encoding: how its text is encoded.

    Attributes:
        columns: names in the order of the file.

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
        self.columns = [self._column(text) for text in header.split(separator)]
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise DataError(f"{path}: column {name!r} is there twice; rename one.")

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

    def check_rows(self, number: str | None = None) -> None:
        """There is a row, and each has a field per column; those of ``number`` are numbers.

        Raises:
            DataError: the first row that does not do.
        """
        lines, last = iter(self._lines()), 1
        next(lines)
        column = None if number is None else self.columns.index(number)
        for last, line in enumerate(lines, start=2):
            if not line:
                continue
            row = line.split(self.separator)
            if len(row) != len(self.columns):
                raise DataError(
                    f"{self.path}, line {last}: {len(row)} fields, but the header names "
                    f"{len(self.columns)}; mend that line."
                )
            if column is not None and not _is_number(row[column]):
                raise DataError(
                    f"{self.path}, line {last}: {number} is {row[column]!r}, not a number; "
                    "mend that line."
                )
        if last == 1:
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

    def _column(self, text: str) -> str:
        if text.startswith("\ufeff"):
            raise DataError(
                f"{self.path} starts with a byte-order mark; save it without, or set "
                "encoding to utf-8-sig."
            )
        name, colon, kind = text.partition(":")
        if not (name and colon and kind in _TYPES):
            raise DataError(
                f"{self.path}: {text!r} in the header is not name:type with a type of "
                f"{', '.join(_TYPES)} (fields are separated by {self.separator!r})."
            )
        return name


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
