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

CORE = 5
MAX_MALFORMED = 0.01

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dumps:
    """The entry ``dumps`` of a data set's YAML file."""

    reviews: Source
    metadata: Source
    lines: int | None = None
    """Number of reviews according to the publishers."""
    table_8: Sequence[int] | None = None
    """Sequences and items in the paper's Table 8, as printed."""

    @classmethod
    def from_setting(cls, value: Any) -> Dumps:
        """Parse and check the entry.

        Raises:
            SettingError: the entry has another form.
        """
        keys = {"reviews", "metadata", "lines", "table_8"}
        if not isinstance(value, Mapping) or not {"reviews", "metadata"} <= set(value) <= keys:
            raise SettingError(
                "dumps must be {reviews: {urls: [...]}, metadata: {urls: [...]}}, with lines and "
                f"table_8 where known; not {value!r}."
            )
        return cls(
            Source.from_setting(value["reviews"], "dumps.reviews"),
            Source.from_setting(value["metadata"], "dumps.metadata"),
            value.get("lines"),
            value.get("table_8"),
        )

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
                    summary = convert(reviews, metadata, root / name, CORE, MAX_MALFORMED)
                except BrokenDump as error:
                    for path in (reviews, metadata):
                        if str(path) in str(error):
                            path.unlink()
                    raise
            logger.info(
                f"{report(summary, dumps)}\n  the dumps in {folder} are not needed any more"
            )
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
    lines = [summary.text()]
    if dumps and dumps.lines is not None:
        known, read = dumps.lines, summary.lines
        lines.append(f"  published: {known:,} reviews{_difference(read - known)}")
    if dumps and dumps.table_8 is not None:
        users, items = dumps.table_8
        lines.append(
            f"  the paper's Table 8: {users:,} sequences{_difference(summary.users - users)}, "
            f"{items:,} items{_difference(summary.items - items)}"
        )
    return "\n".join(lines)


def _difference(here: int) -> str:
    return f" ({here:+,} here)" if here else " (the same here)"
