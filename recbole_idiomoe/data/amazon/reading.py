"""Dumps of reviews and metadata of all years, read line by line.

A line is a JSON object, or in the metadata of 2014 a Python literal, which ``ast.literal_eval``
parses without running code. A line that is neither, or lacks a needed field, is malformed: it is
counted and skipped. Too many malformed lines are an error.
"""

from __future__ import annotations

import ast
import gzip
import html
import io
import json
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.atomic_files import MISSING

MAX_LINE = 4 << 20  # most bytes of a line; metadata that contain a whole web page have 1 MB
LONGEST = 2000  # most characters of a title or brand; longer ones are whole web pages

_TOO_LONG = b"<too long>"
_ALWAYS_ALLOWED = 10
_HOPELESS = 1000  # lines; a file whose first ones are all malformed is read no further
_MAX_TIME = 1e11  # seconds since 1970; a larger number is not a time
_ID = re.compile(r"[!-~]{1,64}")
_SHOW_EVERY = 4096
_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
# Control and format characters that pandas, csv or a terminal would act on, and surrogates that
# UTF-8 cannot hold.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


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
        limit: largest share of malformed lines; unless it is 0, 10 are always allowed.

    Attributes:
        lines: number of lines read, without blank ones.
        faults: number of malformed lines, by reason.
        first: the first malformed line, for example ``line 12: no user``; else empty.

    Raises:
        DataError: while reading, if the file cannot be read or too many lines are malformed.
        BrokenDump: while reading, if the file is truncated or damaged.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self.path, self.limit = path, limit
        self.lines = 0
        self.faults: Counter[str] = Counter()
        self.first = ""

    def reviews(self) -> Iterator[Review]:
        """The well-formed reviews."""
        return self._read(_review, "review")

    def items(self) -> Iterator[Item]:
        """The well-formed rows of metadata; an item may have several."""
        return self._read(_item, "row of metadata")

    def _read(self, parse: Callable[[Mapping[str, Any]], Any], what: str) -> Iterator[Any]:
        malformed = 0
        for number, line in enumerate(self._raw_lines(), start=1):
            if line.isspace():
                continue
            self.lines += 1
            try:
                yield parse(_mapping(line))
            except _Fault as fault:
                malformed += 1
                self.faults[str(fault)] += 1
                self.first = self.first or f"line {number}: {fault}"
                if malformed == self.lines == _HOPELESS:
                    break
        if not self.lines:
            raise DataError(f"{self.path} holds no line; give a dump with at least one {what}.")
        if malformed == self.lines:
            raise DataError(
                f"{self.path}: none of its first {self.lines} lines is a {what} ({self.first}); "
                "give a dump of Amazon's of 2014, 2018 or 2023."
            )
        allowed = max(_ALWAYS_ALLOWED, self.limit * self.lines) if self.limit > 0 else 0
        if malformed > allowed:
            raise DataError(
                f"{self.path}: {malformed} of {self.lines} lines are malformed ({self.first}), "
                f"more than the share of {self.limit:g} allowed; fix the file, or allow more with "
                "--max_malformed."
            )

    def _raw_lines(self) -> Iterator[bytes]:
        """Lines with their line ends, and ``_TOO_LONG`` in place of a line that is too long."""
        read, style = 0, {"unit": "B", "unit_scale": True, "desc": self.path.name, "disable": None}
        try:
            size = self.path.stat().st_size
            with open(self.path, "rb") as raw, tqdm(total=size, **style) as bar:
                stream = io.BufferedReader(_unpacked(raw), 1 << 20)
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
    """The content of ``raw``, unpacked if its first bytes say that it is gzipped."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if packed else raw


def one_line(value: Any) -> str:
    """``value`` as plain text on one line, without entities, tags and control characters.

    The texts of a list are joined by spaces. The result is empty for any other type, and for
    titles of 2018 that are pieces of a web page's script.
    """
    if isinstance(value, list | tuple):
        value = " ".join(part for part in value if isinstance(part, str))
    if not isinstance(value, str):
        return ""
    text = value[: 100 * LONGEST]
    for _ in range(3):  # some were escaped twice: &amp;amp;
        text = html.unescape(text)
    text = _SPACE.sub(" ", _UNFIT.sub(" ", _TAG.sub(" ", text))).strip()
    if "getTime" in text:  # the mark of such titles according to the dumps' own page
        return ""
    return text[:LONGEST].rstrip()


def category_names(value: Any) -> list[str]:
    """The distinct category names in ``value``: a list, or the nested lists of 2014."""
    names: list[str] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting.extend(reversed(part))
        elif isinstance(part, str):
            names.append(one_line(part).replace("|", "/"))
    return [name for name in dict.fromkeys(names) if name]


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
