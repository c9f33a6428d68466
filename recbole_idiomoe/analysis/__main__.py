"""``python -m recbole_idiomoe.analysis NAME FOLDER [FOLDER ...]``."""

from __future__ import annotations

import logging
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import HfArgumentParser

from recbole_idiomoe.analysis import report
from recbole_idiomoe.analysis.commands import COMMANDS, PROGRAM
from recbole_idiomoe.analysis.outputs import out_folder, plain_text, write_outputs
from recbole_idiomoe.analysis.settings import ReportSettings
from recbole_idiomoe.base.command_line import Parser, run_program
from recbole_idiomoe.base.errors import SettingError, did_you_mean

_REPORT = "report"
_SETTINGS = {name: each.settings for name, each in COMMANDS.items()} | {_REPORT: ReportSettings}
_HELP = {name: each.help for name, each in COMMANDS.items()} | {_REPORT: report.HELP}


class _Parser(Parser, HfArgumentParser):
    """Parses settings into a dataclass and reports errors in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one analysis, write its files and print its tables; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("recbole_idiomoe").setLevel(logging.INFO)
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return 0 if given else 2
    return run_program(lambda: print(_run_analysis(given)))


def _run_analysis(given: list[str]) -> str:
    """Run the analysis that is named first; returns the text to print."""
    name, *rest = given
    if name not in _HELP:
        raise SettingError(f"unknown analysis {name!r}{did_you_mean(name, _HELP, '--help')}")
    parser = _Parser(
        cast(Any, _SETTINGS[name]), prog=f"{PROGRAM} {name}", description=f"Shows {_HELP[name]}."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run, under saved/")
    settings, named, unknown = parser.parse_args_into_dataclasses(
        rest, return_remaining_strings=True
    )
    if unknown:
        raise SettingError(f"unknown setting {unknown[0]}; {name} --help names them all.")
    folders = [Path(folder) for folder in named.folders]
    typed = f"{PROGRAM} {shlex.join(given)}"
    if name == _REPORT:
        return report.report(folders, settings, typed)
    out = out_folder(settings.out, folders)
    analysis = COMMANDS[name].compute(folders, settings)
    analysis.command = typed
    return plain_text(analysis, write_outputs(analysis, out))


def _usage() -> str:
    width = max(map(len, _HELP)) + 4
    lines = [f"usage: {PROGRAM} NAME FOLDER [FOLDER ...]", "       [--setting VALUE ...]", ""]
    for name, text in _HELP.items():
        first, later = f"  {name}".ljust(width), " " * width
        lines += textwrap.wrap(text, 79, initial_indent=first, subsequent_indent=later)
    lines += ["", "FOLDER is a run's, under saved/. NAME --help names the settings of one."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
