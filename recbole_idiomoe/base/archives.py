"""Safe unpacking of downloaded archives: no file may leave the target folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PureWindowsPath

from recbole_idiomoe.base.errors import DataError


def extract_zip(archive: str | Path, folder: str | Path) -> None:
    """Unpack ``archive`` into ``folder`` and check the checksum of every file.

    A replacement for RecBole's function of the same name, which accepts members that point
    outside the folder, and archives that do not fit on the disk.

    Raises:
        DataError: a member is a link or would lie outside ``folder``, or there is not enough
            room; nothing is written then.
        zipfile.BadZipFile: the file is not a zip archive, or is truncated or altered.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if _leaves_the_folder(member):
                raise DataError(
                    f"{archive} holds {member.filename!r}, which would lie outside {folder}; "
                    "nothing of it was unpacked"
                )
        # zipfile reads no more bytes of a member than its declared size.
        size, free = sum(m.file_size for m in opened.infolist()), shutil.disk_usage(folder).free
        if size > free:
            raise DataError(
                f"{archive} unpacks to {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are "
                f"free for {folder}; nothing of it was unpacked"
            )
        opened.extractall(folder)


def _leaves_the_folder(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a link, or its name an absolute path or one with ``..``.

    Names are read as on Windows, where both slashes separate folders: the strictest reading.
    """
    path = PureWindowsPath(member.filename)
    return bool(path.anchor) or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16)
