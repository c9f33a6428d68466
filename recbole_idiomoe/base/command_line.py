"""What the command lines share: parsing of arguments, exit codes and error output."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from recbole_idiomoe.base.errors import IdiomoeError, SettingError


def run_program(
    program: Callable[[], int | None],
    print_error: Callable[..., None] = print,
    interrupted: str = "interrupted",
) -> int:
    """Run ``program`` and return its exit code.

    The code is the program's own, by default 0; 2 for an error that the user can fix, which is
    one line on stderr; and 130 for an interruption. Any other exception is a bug of this package
    and keeps its traceback. Characters that the console's encoding does not have are printed as
    escapes.

    Args:
        print_error: prints an error, with the arguments of ``print``.
        interrupted: printed after an interruption outside of any :func:`resume_hint`.
    """
    _prepare_streams()
    try:
        _check_folder()
        code = program() or 0
        sys.stdout.flush()
        return code
    except IdiomoeError as error:
        print_error(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of a pipe, such as head, is done; Python would report an error at its flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interruption:
        print(str(interruption) or interrupted, file=sys.stderr)
        return 130


def _prepare_streams() -> None:
    """Open closed standard streams, and have what the console cannot show printed as escapes."""
    # Of a machine without shared memory, which nothing here needs by default.
    warnings.filterwarnings("ignore", ".*joblib will operate in serial mode", UserWarning)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the file opened next would otherwise take its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not so in a notebook
            stream.reconfigure(errors="backslashreplace")


def _check_folder() -> None:
    """Raise an :class:`IdiomoeError` if the current folder was removed; libraries would crash."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise IdiomoeError("the current folder was removed; change into another one.") from error


@contextmanager
def resume_hint(how: str) -> Iterator[None]:
    """Add ``how`` to resume to an interruption of the block; the outermost hint is shown."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(f"interrupted; {how}") from interruption


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, without the usage text.

    Raises:
        SettingError: arguments that cannot be parsed, where argparse would end the process.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help} | options)

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message}; --help names what can be given.")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows defaults, unless they are None, empty or a flag's."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action, argparse._StoreFalseAction):  # HfArgumentParser's --no_NAME
            return f"as --{action.dest}=False"
        is_flag = isinstance(action, argparse._StoreTrueAction)
        if is_flag or action.default in (None, "", []):
            return action.help
        return super()._get_help_string(action)
