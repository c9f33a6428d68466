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
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write fails with where the disk, a quota or the largest size of a file is exceeded."""


def unwritable_reason(folder: Path) -> str | None:
    """Why ``folder``, which need not exist yet, cannot be written; None if it can."""
    folder = folder.absolute()
    folder = next(path for path in (folder, *folder.parents) if path.exists())
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder}: Permission denied"
    error = _write_error(folder, size=1 << 16)
    return f"{folder}: {error.strerror}" if error else None


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
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder_update(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` if the block succeeds.

    After all files are flushed to disk, they move one by one in the order of their writing.
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
        _flush(folder)


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
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        os.replace(temporary, folder)
        _flush(folder.parent)


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
    """Flush a file, or the entries of a folder, to disk; a crash can undo an unflushed rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush folders.
        if path.is_file() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
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
    if isinstance(error, OSError):
        return error.errno in DISK_FULL_ERRNOS
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    refused = _write_error(folder, size=1 << 20)  # torch's errors do not name the cause
    return refused is not None and refused.errno in DISK_FULL_ERRNOS


def _write_error(folder: Path, size: int) -> OSError | None:
    """The error of writing ``size`` bytes into ``folder``; None if they can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(size))
    except OSError as error:
        return error
    return None
