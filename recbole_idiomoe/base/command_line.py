"""What the command lines share: how words are read, and how a program ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from recbole_idiomoe.base.errors import IdiomoeError, SettingError


def run_program(
    program: Callable[[], int | None],
    complain: Callable[..., None] = print,
    interrupted: str = "interrupted",
) -> int:
    """Run ``program`` and return its exit code.

    0 is success unless the program says otherwise, 2 an error that the user can mend (one line on
    stderr) and 130 an interruption. Any other fault is one of ours and keeps its traceback.

    Args:
        complain: prints an error, as ``print`` does.
        interrupted: what is said of an interruption that does not say it, as those that
            :func:`resume_hint` raises do.
    """
    try:
        code = program() or 0
        sys.stdout.flush()
        return code
    except IdiomoeError as error:
        complain(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as head, has seen enough; Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interruption:
        print(str(interruption) or interrupted, file=sys.stderr)
        return 130


@contextmanager
def resume_hint(how: str) -> Iterator[None]:
    """Have an interruption say how to go on; of several around it, the outermost knows."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(f"interrupted; {how}") from interruption


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, instead of below the list of all that could be given.

    Raises:
        SettingError: words that cannot be read, where argparse would end the process.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help} | options)

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message}; --help names what can be given.")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that there are; nothing, an empty text and an empty list are none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action, argparse._StoreFalseAction):  # HfArgumentParser's --no_NAME
            return f"as --{action.dest}=False"
        is_flag = isinstance(action, argparse._StoreTrueAction)
        if is_flag or action.default in (None, "", []):
            return action.help
        return super()._get_help_string(action)
