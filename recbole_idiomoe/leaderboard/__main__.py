"""``python -m recbole_idiomoe.leaderboard FOLDER``: rebuild its files from the kept runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_idiomoe.base.command_line import Parser, run_program
from recbole_idiomoe.leaderboard.board import open_board, read_board
from recbole_idiomoe.leaderboard.outputs import write_outputs


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild the files of a leaderboard and print its table; returns the exit code."""
    parser = Parser(
        prog="python -m recbole_idiomoe.leaderboard",
        description="Write the files of a leaderboard again, from the runs that it keeps.",
    )
    parser.add_argument("folder", type=Path, help="what --leaderboard named")
    return run_program(lambda: _rebuild(parser.parse_args(arguments).folder))


def _rebuild(folder: Path) -> None:
    read_board(folder)  # fails for an empty folder, which open_board would fill
    with open_board(folder) as board:
        print(write_outputs(board)["table"])


if __name__ == "__main__":
    sys.exit(main())
