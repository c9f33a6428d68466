"""The one kind of error that a user is meant to read.

Whatever goes wrong with a setting, a file or a machine is raised as an
:class:`IdiomoeError` whose message is one line: what happened, where, and how
to mend it. The command line prints that line and nothing else; a notebook sees
an ordinary exception.
"""

from __future__ import annotations

import traceback
from pathlib import Path


class IdiomoeError(ValueError):
    """A fault that its reader can mend; the message is one line."""


class SettingError(IdiomoeError):
    """A setting that is unknown, of the wrong type, or out of range."""


class DataError(IdiomoeError):
    """Dataset files that are missing, unreadable or hold nothing to learn from."""


class BackboneError(IdiomoeError):
    """A language model that cannot be loaded or cannot take experts."""


class MissingLibraryError(IdiomoeError):
    """A library that only some models need is not installed."""


class CheckpointError(IdiomoeError):
    """A saved model that is incomplete, altered or made for something else."""


class NonFiniteLossError(IdiomoeError):
    """A training loss that is no finite number.

    Attributes:
        users_file: the file with the users of the step; None: it is not kept.
    """

    def __init__(self, said: str, users_file: Path | None) -> None:
        super().__init__(said, users_file)
        self.said, self.users_file = said, users_file

    def __str__(self) -> str:
        place = f" (the step's users: {self.users_file})" if self.users_file else ""
        return f"{self.said}{place}."


class DiskFullError(IdiomoeError):
    """There is no room for a file; what it would have replaced is still there."""


def short_reason(error: Exception) -> str:
    """What kept a file from being read, in brackets: the system's words, else the error's class."""
    system = error.strerror if isinstance(error, OSError) else None
    return system or type(error).__name__


def one_line_reason(error: Exception) -> str:
    """One line on what went wrong: our own message, or another error's last line with its class."""
    if isinstance(error, IdiomoeError):
        return str(error)
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
