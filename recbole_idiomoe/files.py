"""Files that are whole or not there: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refusal(folder: Path) -> str | None:
    """Why nothing can be written under ``folder``, which need not exist yet; None: it can."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder}: Permission denied"
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        aside.chmod(0o644)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends well.

    They move one by one, in the order in which they were written: the last one's presence
    says that all are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as name:
        aside = Path(name)
        yield aside
        for path in sorted(aside.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            with open(path, "rb") as written:
                os.fsync(written.fileno())
            path.chmod(0o644)
            os.replace(path, folder / path.name)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place when the block ends well.

    Raises:
        OSError: ``folder`` is there and not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        aside = Path(name) / folder.name
        aside.mkdir()
        yield aside
        for path in aside.iterdir():
            with open(path, "rb") as written:
                os.fsync(written.fileno())
        os.replace(aside, folder)
