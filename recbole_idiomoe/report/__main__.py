"""``python -m recbole_idiomoe.report FILE.json ...``: print the tables of grids in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_idiomoe.base.command_line import Parser, run_program
from recbole_idiomoe.report.result_files import merge_grids, read_grid
from recbole_idiomoe.report.tables import grid_markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of the result files that are named, and return the exit code."""
    return run_program(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m recbole_idiomoe.report",
        description="Print tables of variants or seeds in Markdown, of several files as one.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a --result_file")
    files = parser.parse_args(arguments).files
    print(grid_markdown(merge_grids([read_grid(path) for path in files])))


if __name__ == "__main__":
    sys.exit(main())
