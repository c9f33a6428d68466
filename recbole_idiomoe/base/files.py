"""Files that are whole or not there: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_idiomoe.base.errors import DiskFullError, IdiomoeError

TEMPORARY_SUFFIX = ".aside"
"""How the names end under which files and folders are written."""

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def unwritable_reason(folder: Path) -> str | None:
    """Why nothing can be written under ``folder``, which need not exist yet; None: it can."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder}: Permission denied"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 16))
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well."""
    with _full_disk_told(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent
        )
        os.close(handle)
        aside = Path(name)
        try:
            with _full_disk_told(path.parent):
                yield aside
            _flush(aside)
            aside.chmod(0o644)
            os.replace(aside, path)
            _flush_names(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder_update(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends well.

    They move one by one, in the order in which they were written, and only when all of them are
    on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _folder_aside(".new-", folder) as aside:
        yield aside
        written = sorted(aside.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in written:
            _flush(path)
            path.chmod(0o644)
        for path in written:
            os.replace(path, folder / path.name)
        _flush_names(folder)


@contextmanager
def atomic_new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place when the block ends well.

    Raises:
        OSError: ``folder`` is there and not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _folder_aside(f".{folder.name}-", folder.parent) as outer:
        aside = outer / folder.name
        aside.mkdir()
        yield aside
        for path in aside.iterdir():
            _flush(path)
        _flush_names(aside)
        os.replace(aside, folder)
        _flush_names(folder.parent)


def remove_temporary_files(folder: Path) -> None:
    """Remove what a killed process was writing into ``folder``; nobody else may be, now."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _folder_aside(prefix: str, parent: Path) -> Iterator[Path]:
    """A temporary folder in ``parent``."""
    with (
        _full_disk_told(parent),
        tempfile.TemporaryDirectory(prefix=prefix, suffix=TEMPORARY_SUFFIX, dir=parent) as name,
        _full_disk_told(Path(name)),
    ):
        yield Path(name)


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def _flush_names(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk: until then a rename may be undone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks' answer
            raise
    finally:
        os.close(handle)


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Whatever error a library makes of a full disk becomes one that says so."""
    try:
        yield
    except IdiomoeError:
        raise
    except Exception as error:
        if not _is_full(error, folder):
            raise
        raise DiskFullError(
            f"{folder} cannot be written: the disk is full. Nothing that was there is touched; "
            "make room and try again (a run goes on with --resume)."
        ) from error


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether ``error`` came of a full disk; torch's does not say, so that a write is tried."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL_ERRNOS
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
    except OSError as refused:
        return refused.errno in DISK_FULL_ERRNOS
    return False
