"""Errors that users can fix, and parts of their messages.

A problem with a setting, a file or the machine is raised as an :class:`IdiomoeError` whose
message is one line: what happened, where, and how to fix it. The command line prints only that
line; in a notebook it is an ordinary exception.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class IdiomoeError(ValueError):
    """An error that the user can fix; its message is one line."""


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
    """A training loss that is not a finite number.

    Attributes:
        users_file: the file that lists the users of the step, if there is one.
    """

    def __init__(self, said: str, users_file: Path | None) -> None:
        super().__init__(said, users_file)
        self.said, self.users_file = said, users_file

    def __str__(self) -> str:
        place = f" (the step's users: {self.users_file})" if self.users_file else ""
        return f"{self.said}{place}."


class DiskFullError(IdiomoeError):
    """The disk is too full to write a file; an earlier version of the file is unchanged."""


def short_reason(error: Exception) -> str:
    """The operating system's message of an ``OSError``, else the name of the error's class."""
    system = error.strerror if isinstance(error, OSError) else None
    return system or type(error).__name__


def error_line(error: Exception) -> str:
    """The message of an :class:`IdiomoeError`; for other errors, their class and message."""
    if isinstance(error, IdiomoeError):
        return str(error)
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1]


def did_you_mean(name: str, known: Iterable[str], listing: str) -> str:
    """The end of an error message about an unknown ``name``: a suggestion, else ``listing``."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else f"; {listing} names them all."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to ``name``, ignoring case; None if none is similar."""
    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else None
