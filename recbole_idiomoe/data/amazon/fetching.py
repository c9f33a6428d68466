"""Downloads of dumps, which resume after an interruption.

They use urllib, like RecBole, because other clients may unpack a ``.gz`` file that a server
declares as a content encoding.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from recbole_idiomoe.base import __version__
from recbole_idiomoe.base.errors import DataError, SettingError

PATIENCE_S = 30.0  # seconds without a byte after which a connection is closed
ATTEMPTS = 5  # connections in a row without a byte after which a server is given up
PAUSE_S = 1.0  # seconds before the second of these attempts; the wait doubles after each

_TEMPORARY = (408, 429, 500, 502, 503, 504)  # HTTP errors after which another attempt may succeed
_NETWORK_ERRORS = (URLError, ConnectionError, TimeoutError, HTTPException)
_CHUNK = 1 << 20
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)")

logger = logging.getLogger(__name__)


class Unavailable(DataError):
    """A file that cannot be downloaded from any of its addresses."""


@dataclass(frozen=True)
class Source:
    """The addresses of a dump, with its size and hash if they are known."""

    urls: tuple[str, ...]  # addresses of the same file, tried in turn
    size: int | None = None  # in bytes
    sha256: str | None = None  # in hexadecimal

    @property
    def name(self) -> str:
        """The name of the file, from its first address."""
        return urlsplit(self.urls[0]).path.rsplit("/", 1)[-1]

    @classmethod
    def from_setting(cls, value: Any, where: str) -> Source:
        """Parse ``{urls: [...], size: ..., sha256: ...}``, or raise a :class:`SettingError`."""
        unknown = set(value) - {"urls", "size", "sha256"} if isinstance(value, Mapping) else {"?"}
        urls = [] if unknown else value.get("urls")
        if not urls or not isinstance(urls, list) or not all(map(_is_http, urls)):
            raise SettingError(
                f"{where} must be {{urls: [https://...], size: BYTES, sha256: HASH}}, the last two "
                f"if known; not {value!r}."
            )
        return cls(tuple(urls), value.get("size"), value.get("sha256"))


def fetch(source: Source, folder: Path) -> Path:
    """Download a file to ``folder/NAME`` unless it exists, and return its path.

    An interrupted download resumes from ``NAME.part``.

    Raises:
        Unavailable: no address has the file; the message has the answer of each.
        DataError: the disk is full or cannot be written.
    """
    path = folder / source.name
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}.part")
    failures = []
    for url in source.urls:
        logger.info(f"fetching {url} into {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(url, part, source.size)
            _check(part, source)
            with open(part, "rb") as written:
                os.fsync(written.fileno())
            os.replace(part, path)
            return path
        except (_Refused, *_NETWORK_ERRORS) as error:
            failures.append(f"{urlsplit(url).netloc}: {_reason(error)}")
        except OSError as error:
            raise DataError(
                f"Cannot write {part} ({error.strerror or error}); free space there, or name "
                "another folder with --data_path."
            ) from error
    kept = f"; {_size(part):,} bytes of it are kept in {folder}" if part.is_file() else ""
    raise Unavailable(f"{source.name} from {', '.join(failures)}{kept}")


class _Refused(Exception):
    """An answer that another attempt would not change."""


def _download(url: str, part: Path, size: int | None) -> None:
    """Append to ``part`` until it is complete, with new attempts as long as bytes arrive."""
    idle, begun_with = 0, _size(part)
    with tqdm(unit="B", unit_scale=True, desc=part.stem, total=size, disable=None) as bar:
        while True:
            had = _size(part)
            bar.n = had
            try:
                return _stream(url, part, size, bar)
            except _NETWORK_ERRORS as error:
                if isinstance(error, HTTPError):
                    error.close()
                    if error.code not in _TEMPORARY:
                        raise _Refused(f"HTTP {error.code} {error.reason}") from error
                fault = error
            idle = 0 if _size(part) > had else idle + 1
            offline = isinstance(getattr(fault, "reason", None), socket.gaierror)
            if idle >= ATTEMPTS or (offline and _size(part) == begun_with):
                raise fault
            time.sleep(PAUSE_S * 2**idle / 2)


def _stream(url: str, part: Path, size: int | None, bar: Any) -> None:
    """Read ``url`` from the end of ``part`` over one connection."""
    had = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": f"recbole_idiomoe/{__version__}"})
    if had:
        request.add_header("Range", f"bytes={had}-")
    try:
        response = urllib.request.urlopen(request, timeout=PATIENCE_S)
    except HTTPError as error:
        if error.code != 416 or not had:
            raise
        with error:
            if _range_of(error)[1] == had:
                return  # nothing after the end: the part is complete
        part.unlink()
        raise ConnectionError("the file there is another one than was begun") from error
    with response:
        begun, total = _range_of(response)
        if response.status != 206:
            had = 0  # a server without ranges sends the whole file
        elif begun != had:
            raise _Refused("another part of the file than was asked for")
        if total is not None and size is not None and total != size:
            raise _Refused(f"a file of {total:,} bytes, where {size:,} are known")
        if total is not None and total - had > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, f"{total - had:,} more bytes do not fit")
        bar.total, bar.n = total, had
        chunk = _read(response)
        if not had and not chunk.startswith(b"\x1f") and part.stem.endswith(".gz"):
            raise _Refused("something that is not gzipped, perhaps a web page")
        with open(part, "r+b" if had else "wb") as file:
            file.seek(had)
            while chunk:
                file.write(chunk)
                had += len(chunk)
                bar.update(len(chunk))
                chunk = _read(response)
        if total is not None and had < total:
            raise ConnectionError(f"the connection ended after {had:,} of {total:,} bytes")


def _read(response: HTTPResponse) -> bytes:
    """The next bytes; an error of the connection is raised as a network error."""
    try:
        return response.read1(_CHUNK)
    except OSError as error:
        raise ConnectionError(_reason(error)) from error


def _range_of(response: Any) -> tuple[int | None, int | None]:
    """The offset of the body, and the size of the whole file; None if unknown."""
    if match := _RANGE.match(response.headers.get("Content-Range") or ""):
        begun, total = (int(text) if text else None for text in match.groups())
        return begun, total
    length = response.headers.get("Content-Length") or ""
    return 0, int(length) if length.isdigit() else None


def _check(part: Path, source: Source) -> None:
    """Check size and hash if they are known; remove the part if they differ."""
    found = _size(part)
    if source.size is not None and found != source.size:
        part.unlink()
        raise _Refused(f"a file of {found:,} bytes, where {source.size:,} are known")
    if source.sha256:
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != source.sha256:
            part.unlink()
            raise _Refused(f"a file with SHA-256 {digest}, where {source.sha256} is published")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_http(url: Any) -> bool:
    return isinstance(url, str) and url.startswith(("http://", "https://")) and "/" in url[8:]


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE_S:g} s"
    if isinstance(reason := getattr(error, "reason", None), Exception):  # of a URLError
        error = reason
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text or type(error).__name__
