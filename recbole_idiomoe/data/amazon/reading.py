"""Dumps of reviews and metadata of all years, read line by line.

A line is a JSON object, or in the metadata of 2014 a Python literal, which ``ast.literal_eval``
parses without running code. A line that is neither, or lacks a needed field, is malformed: it is
counted and skipped, and too many of them are an error.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.amazon.text import category_names, one_line
from recbole_idiomoe.data.atomic_files import MISSING

MAX_LINE = 4 << 20
"""Most bytes of a line; metadata that contain a whole web page have 1 MB."""

_TOO_LONG = b"<too long>"
_ALWAYS_ALLOWED = 10
_HOPELESS = 1000  # lines; a file whose first ones are all malformed is read no further
_MAX_TIME = 1e11  # seconds since 1970; a larger number is not a time
_ID = re.compile(r"[!-~]{1,64}")
_SHOW_EVERY = 4096


class BrokenDump(DataError):
    """A file that is truncated or damaged; downloading it again may help."""


class Review(NamedTuple):
    """A user's review of an item, at a time in seconds since 1970."""

    user: str
    item: str
    time: float


class Item(NamedTuple):
    """The metadata of an item; a missing text is empty."""

    item: str
    title: str
    categories: list[str]
    brand: str


class _Fault(ValueError):
    """The reason why a line is malformed."""


class Dump:
    """A file of reviews or metadata, gzipped or plain, which can be read once.

    A progress bar is shown if stderr is a terminal.

    Args:
        path: the file.
        limit: largest share of malformed lines; unless it is 0, 10 are always allowed.

    Attributes:
        lines: number of lines read, without blank ones.
        faults: number of malformed lines, by reason.
        first: the first malformed line, for example ``line 12: no user``; else empty.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self.path, self.limit = path, limit
        self.lines = 0
        self.faults: Counter[str] = Counter()
        self.first = ""

    @property
    def malformed(self) -> int:
        """The number of malformed lines."""
        return self.faults.total()

    def reviews(self) -> Iterator[Review]:
        """The well-formed reviews.

        Raises:
            DataError: the file cannot be read, or too many lines are malformed.
            BrokenDump: the file is truncated or damaged.
        """
        return self._read(_review)

    def items(self) -> Iterator[Item]:
        """The well-formed rows of metadata; an item may have several.

        Raises:
            DataError: the file cannot be read, or too many lines are malformed.
            BrokenDump: the file is truncated or damaged.
        """
        return self._read(_item)

    def _read(self, parse: Any) -> Iterator[Any]:
        number = 0
        for number, line in enumerate(self._raw_lines(), start=1):
            if line.isspace():
                continue
            self.lines += 1
            try:
                yield parse(_mapping(line))
            except _Fault as fault:
                self.faults[str(fault)] += 1
                self.first = self.first or f"line {number}: {fault}"
                if self.malformed == self.lines == _HOPELESS:
                    break
        allowed = max(_ALWAYS_ALLOWED, self.limit * self.lines) if self.limit > 0 else 0
        if self.malformed == self.lines or self.malformed > allowed:
            self._refuse(parse)

    def _refuse(self, parse: Any) -> None:
        what = "review" if parse is _review else "row of metadata"
        if not self.lines:
            raise DataError(f"{self.path} holds no line; give a dump with at least one {what}.")
        if self.malformed == self.lines:
            raise DataError(
                f"{self.path}: none of its first {self.lines} lines is a {what} ({self.first}); "
                "give a dump of Amazon's of 2014, 2018 or 2023."
            )
        raise DataError(
            f"{self.path}: {self.malformed} of {self.lines} lines are malformed ({self.first}), "
            f"more than the share of {self.limit:g} allowed; fix the file, or allow more with "
            "--max_malformed."
        )

    def _raw_lines(self) -> Iterator[bytes]:
        """Lines with their line ends, and ``_TOO_LONG`` in place of a line that is too long."""
        read = 0
        try:
            with open(self.path, "rb") as raw:
                size = self.path.stat().st_size
                stream = io.BufferedReader(_unpacked(raw), 1 << 20)
                with tqdm(
                    total=size,
                    unit="B",
                    unit_scale=True,
                    desc=self.path.name,
                    disable=None,
                ) as bar:
                    while line := stream.readline(MAX_LINE):
                        if len(line) == MAX_LINE and not line.endswith(b"\n"):
                            while line and not line.endswith(b"\n"):
                                line = stream.readline(MAX_LINE)
                            line = _TOO_LONG
                        read += 1
                        yield line
                        if read % _SHOW_EVERY == 0:
                            bar.update(raw.tell() - bar.n)
                    bar.update(size - bar.n)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BrokenDump(
                f"{self.path} is damaged after line {read} ({error}); download it again."
            ) from error
        except OSError as error:
            raise DataError(f"Cannot read {self.path}: {error.strerror or error}.") from error


def _unpacked(raw: IO[bytes]) -> Any:
    """The content of ``raw``, unpacked if its first bytes, not its name, say that it is gzipped."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if packed else raw


def _mapping(line: bytes) -> Mapping[str, Any]:
    if line is _TOO_LONG:
        raise _Fault(f"longer than {MAX_LINE} bytes")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = _literal(line)
    if not isinstance(row, dict):
        raise _Fault("no object")
    return row


def _literal(line: bytes) -> Any:
    if not line.lstrip().startswith(b"{"):
        raise _Fault("neither JSON nor a Python literal")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes that a later Python will reject
            return ast.literal_eval(line.decode("utf-8").strip())
    # literal_eval compiles the text, and the compiler raises more than syntax errors.
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise _Fault("neither JSON nor a Python literal") from error


def _review(row: Mapping[str, Any]) -> Review:
    if "reviewerID" in row:  # 2014 and 2018
        user, item, time = row["reviewerID"], row.get("asin"), row.get("unixReviewTime")
        return Review(_id(user, "user"), _id(item, "item"), _seconds(time))
    # 2023: variants of a product share a parent, which the metadata describe; milliseconds.
    user, item, time = row.get("user_id"), row.get("parent_asin"), row.get("timestamp")
    return Review(_id(user, "user"), _id(item, "item"), _seconds(time, unit=1e-3))


def _item(row: Mapping[str, Any]) -> Item:
    item = _id(row.get("parent_asin", row.get("asin")), "item")
    details = row.get("details")
    brand = row.get("brand") or row.get("store")
    if not brand and isinstance(details, dict):
        brand = details.get("Brand")
    categories = row.get("categories") or row.get("category")
    return Item(item, one_line(row.get("title")), category_names(categories), one_line(brand))


def _id(value: Any, what: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _Fault(f"no {what}")
    if value in MISSING:
        raise _Fault(f"{what} {value!r}, which RecBole takes for missing")
    return value


def _seconds(value: Any, unit: float = 1.0) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < _MAX_TIME / unit:
        raise _Fault("no time")
    return round(value * unit, 3)
