"""Building a data set by its name: fetch its dumps, convert them, compare with the paper."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.amazon.fetching import Source, fetch
from recbole_idiomoe.data.amazon.reading import BrokenDump
from recbole_idiomoe.data.amazon.writing import Summary, convert

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dumps:
    """The entry ``dumps`` of a data set's YAML file."""

    reviews: Source
    metadata: Source
    lines: int | None = None  # reviews, according to the publishers
    table_8: Sequence[int] | None = None  # sequences and items in the paper's Table 8, as printed

    @classmethod
    def from_setting(cls, value: Any) -> Dumps:
        """Parse the entry, or raise a :class:`SettingError` if it has another form."""
        keys = {"reviews", "metadata", "lines", "table_8"}
        if not isinstance(value, Mapping) or not {"reviews", "metadata"} <= set(value) <= keys:
            raise SettingError(
                "dumps must be {reviews: {urls: [...]}, metadata: {urls: [...]}}, with lines and "
                f"table_8 if known; not {value!r}."
            )
        reviews, metadata = (
            Source.from_setting(value[key], f"dumps.{key}") for key in ("reviews", "metadata")
        )
        return cls(reviews, metadata, value.get("lines"), value.get("table_8"))

    def fetch(self, folder: Path) -> tuple[Path, Path]:
        """Download both dumps into ``folder``; raises as :func:`fetching.fetch`."""
        return fetch(self.reviews, folder), fetch(self.metadata, folder)


def build(name: str, root: Path, dumps: Dumps) -> None:
    """Build ``root/NAME`` from dumps that are fetched into ``root/NAME-dumps`` and kept there.

    Of several processes that need the data set, one builds it and the others wait.

    Raises:
        Unavailable: a dump cannot be fetched; new folders that stayed empty are removed.
        DataError: the dumps cannot be converted.
    """
    folder = root / f"{name}-dumps"
    lock = folder / ".lock"
    with new_folder(folder):
        try:
            with FileLock(lock):
                if (root / name / f"{name}.inter").is_file():
                    return
                reviews, metadata = dumps.fetch(folder)
                try:
                    summary = convert(reviews, metadata, root / name)
                except BrokenDump as error:
                    for path in (reviews, metadata):
                        if str(path) in str(error):
                            path.unlink()
                    raise
            text = report(summary, dumps)
            logger.info(f"{text}\n  the dumps in {folder} are not needed any more")
        finally:
            if set(folder.iterdir()) <= {lock}:
                lock.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` with its parents; after the block, remove the new ones that are empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in new:
                path.rmdir()


def report(summary: Summary, dumps: Dumps | None) -> str:
    """The summary, compared with the numbers of the publishers and of the paper."""
    text = summary.text()
    if dumps and dumps.lines is not None:
        text += f"\n  published: {_compared(dumps.lines, 'reviews', summary.lines)}"
    if dumps and dumps.table_8 is not None:
        users, items = dumps.table_8
        text += f"\n  the paper's Table 8: {_compared(users, 'sequences', summary.users)}, "
        text += _compared(items, "items", summary.items)
    return text


def _compared(published: int, what: str, here: int) -> str:
    difference = f"{here - published:+,} here" if here != published else "the same here"
    return f"{published:,} {what} ({difference})"
