"""Checks of RecBole's atomic files, without loading them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
_DATE = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
    r"(?:[T ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}(?::?\d{2})?)?)?",
    re.ASCII,
)
_LARGEST = float(np.finfo(np.float32).max)
_BLOCK = 2**20  # characters that are checked at a time
_LONGEST_LINE = 2**24  # characters, so that a file without line ends is not held in memory


class AtomicFile:
    """A table with a header of ``name:type`` columns.

    Args:
        separator: the separator of fields.
        encoding: the text encoding; None: UTF-8.

    Attributes:
        columns: types of the columns by name, in the order of the file.

    Raises:
        DataError: the file cannot be read or decoded, or its header is not valid.
    """

    def __init__(self, path: Path, separator: str, encoding: str | None) -> None:
        self.path, self.separator, self.encoding = path, separator, encoding or "utf-8"
        _, beginning = next(self._blocks(), (1, ""))
        header = beginning.partition("\n")[0]
        if not header:
            raise DataError(f"{path} is empty; its first line must name columns as name:type.")
        self.columns: dict[str, str] = {}
        for text in header.split(separator):
            if text.startswith("\ufeff"):
                raise DataError(
                    f"{path} starts with a byte-order mark; save it without, or set encoding to "
                    "utf-8-sig."
                )
            name, _, kind = text.partition(":")
            if not name or kind not in _TYPES:
                raise DataError(
                    f"{path}: {text[:60]!r} in the header is not name:type with a type of "
                    f"{', '.join(_TYPES)} (fields are separated by {separator!r})."
                )
            if name in self.columns:
                raise DataError(f"{path}: column {name!r:.60} is there twice; rename one.")
            self.columns[name] = kind

    def check_rows(
        self,
        ids: Sequence[str],
        number: str | None = None,
        numbers: Mapping[str, str | None] | None = None,
        date: str | None = None,
    ) -> None:
        """Check that there are rows, and that every row is valid.

        Every row needs a value in the columns ``ids``, a number in the column ``number`` and an ISO
        date in the column ``date``. The columns ``numbers`` may be empty; they have a separator if
        they are lists, else None.

        Raises:
            DataError: there are no rows, or one is not valid; the message names the first.
        """
        rules = ids, number, numbers or {}, date
        suspicious, empty = self._suspicious(*rules), True
        for first, block in self._blocks():
            begin = 0 if first > 1 else (block.find("\n") + 1 or len(block))
            empty = empty and not block[begin:].strip("\n")
            for found in suspicious.finditer(block, begin):
                begin = found.start()
                end = block.find("\n", begin)
                line = block[begin : len(block) if end < 0 else end]
                if line and (fault := self._fault(line, *rules)):
                    at = first + block.count("\n", 0, begin)
                    raise DataError(f"{self.path}, line {at}: {fault}; fix that line.")
        if empty:
            raise DataError(f"{self.path} has a header but no rows; give it at least one.")

    def _fault(
        self,
        line: str,
        ids: Sequence[str],
        number: str | None,
        numbers: Mapping[str, str | None],
        date: str | None,
    ) -> str:
        """What is wrong with a row, or an empty text."""
        values = line.split(self.separator)
        if len(values) != len(self.columns):
            return f"{len(values)} fields, but the header names {len(self.columns)}"
        row = dict(zip(self.columns, values, strict=True))
        if number is not None and (wrong := _wrong_number(row[number])):
            return f"{number} is {row[number][:60]!r}, {wrong}"
        if date is not None and not _DATE.fullmatch(row[date]):
            what = "no date such as 2024-05-31T18:30:00Z"
            if not _wrong_number(row[date]):
                what = f"a number; the header must be {date}:float"
            return f"{date} is {row[date][:60]!r}, {what}"
        if "\0" in line:
            return "a NUL character, at which pandas ends the field"
        if len(line) > csv.field_size_limit() < max(map(len, values)):
            return f"a field of more than {csv.field_size_limit()} characters"
        fault = ""
        for name in ids:
            if row[name] in MISSING:
                fault = f"{name} is {row[name]!r}, which RecBole takes for missing"
        for name, separator in numbers.items():
            for part in [row[name]] if separator is None else row[name].split(separator):
                if part not in MISSING and (wrong := _wrong_number(part)):
                    fault = f"column {name!r:.60} is {part[:60]!r}, {wrong}"
        return fault

    def _suspicious(
        self,
        ids: Sequence[str],
        number: str | None,
        numbers: Mapping[str, str | None],
        date: str | None,
    ) -> re.Pattern[str]:
        """A pattern that matches the start of lines to check; ten times faster than all lines."""
        if len(self.separator) != 1:
            return re.compile("^", re.MULTILINE)
        separator = re.escape(self.separator)
        anything = rf"[^{separator}\n\0]{{0,{min(4096, csv.field_size_limit())}}}"
        missing = "|".join(map(re.escape, sorted(MISSING)))
        plain_number = r"[+-]?\d{1,30}(?:\.\d{1,30})?"
        plain = dict.fromkeys(self.columns, anything)
        for name, by in numbers.items():  # every list of numbers is checked
            plain[name] = f"(?:{plain_number})?" if by is None else ""
        for name in ids:
            plain[name] = rf"(?!(?:{missing})(?:{separator}|$)){anything}"
        if number is not None:
            plain[number] = plain_number
        if date is not None:
            plain[date] = _DATE.pattern
        return re.compile(f"^(?!{separator.join(plain.values())}$)", re.MULTILINE | re.ASCII)

    def _blocks(self) -> Iterator[tuple[int, str]]:
        """Blocks of whole lines, each with the number of its first line, from 1."""
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
        except UnicodeError as error:
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
        except UnicodeError:  # of UTF-16 without its mark
            return 1
        return 1


def _wrong_number(text: str) -> str:
    """Why ``text`` is not a number of 32 bits, as RecBole needs it; empty if it is one."""
    if _DATE.fullmatch(text):
        return "a date; write :token for :float in the header of this column, if it is the time"
    if not _NUMBER.fullmatch(text):
        return "not a number"
    return "" if abs(float(text)) <= _LARGEST else f"a number above {_LARGEST:.4g}"
