"""Archives from elsewhere: what is in one stays in the folder that it is unpacked into."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PureWindowsPath

from recbole_idiomoe.base.errors import DataError


def extract_zip(archive: str | Path, folder: str | Path) -> None:
    """Unpack ``archive`` into ``folder``; that each file is whole is told by its checksum.

    Arguments as of RecBole's function of this name, which writes members that point elsewhere
    under names of zipfile's choice, and fills a disk.

    Raises:
        DataError: a member would lie outside ``folder`` or is a link, or there is no room for
            all of them; nothing is written then.
        zipfile.BadZipFile: it is no archive, cut short, or altered.
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
        # zipfile reads no more of a member than it says of itself here.
        size, free = sum(m.file_size for m in opened.infolist()), shutil.disk_usage(folder).free
        if size > free:
            raise DataError(
                f"{archive} unpacks to {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are "
                f"free for {folder}; nothing of it was unpacked"
            )
        opened.extractall(folder)


def _leaves_the_folder(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a link, or its name an absolute path or one that goes upwards.

    As Windows reads it, where both slashes part names: stricter than any other system.
    """
    path = PureWindowsPath(member.filename)
    return bool(path.anchor) or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16)
