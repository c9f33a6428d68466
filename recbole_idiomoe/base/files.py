"""Atomic writing: a file is written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_idiomoe.base.errors import DiskFullError, IdiomoeError

_SUFFIX = ".aside"
"""The end of the temporary names of files and folders."""

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def unwritable_reason(folder: Path) -> str | None:
    """Why ``folder``, which need not exist yet, cannot be written; None if it can."""
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
    """A temporary path to write to, which replaces ``path`` if the block succeeds."""
    with _disk_full_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            with _disk_full_error(path.parent):
                yield temporary
            _flush(temporary)
            temporary.chmod(0o644)
            os.replace(temporary, path)
            _flush_entries(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder_update(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` if the block succeeds.

    Once all of them are flushed to disk, they move one by one, in the order in which they were
    written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(".new-", folder) as temporary:
        yield temporary
        written = sorted(temporary.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in written:
            _flush(path)
            path.chmod(0o644)
        for path in written:
            os.replace(path, folder / path.name)
        _flush_entries(folder)


@contextmanager
def atomic_new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` if the block succeeds.

    Raises:
        OSError: ``folder`` exists and is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(f".{folder.name}-", folder.parent) as outer:
        temporary = outer / folder.name
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            _flush(path)
        _flush_entries(temporary)
        os.replace(temporary, folder)
        _flush_entries(folder.parent)


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files that a killed process left in ``folder``, which nobody is writing."""
    for path in folder.glob(f".*{_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _temporary_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """A temporary folder in ``parent``, removed after the block."""
    with (
        _disk_full_error(parent),
        tempfile.TemporaryDirectory(prefix=prefix, suffix=_SUFFIX, dir=parent) as name,
        _disk_full_error(Path(name)),
    ):
        yield Path(name)


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def _flush_entries(folder: Path) -> None:
    """Flush the entries of ``folder`` to disk: before that, a crash may undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(handle)


@contextmanager
def _disk_full_error(folder: Path) -> Iterator[None]:
    """Turn any error that a full disk causes in a library into a :class:`DiskFullError`."""
    try:
        yield
    except IdiomoeError:
        raise
    except Exception as error:
        if not _is_disk_full(error, folder):
            raise
        raise DiskFullError(
            f"{folder} cannot be written: the disk is full. Nothing that was there is touched; "
            "make room and try again (a run goes on with --resume)."
        ) from error


def _is_disk_full(error: Exception, folder: Path) -> bool:
    """Whether a full disk caused ``error``; if it does not say so, as torch's, try a write."""
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
