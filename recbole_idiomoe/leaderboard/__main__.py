"""``python -m recbole_idiomoe.leaderboard FOLDER``: its files anew, from the runs it keeps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_idiomoe.base.command_line import Parser, run_program
from recbole_idiomoe.leaderboard.board import opened, read_board
from recbole_idiomoe.leaderboard.outputs import write_outputs


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files of the leaderboard that is named, and print its table."""
    return run_program(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m recbole_idiomoe.leaderboard",
        description="Write the files of a leaderboard anew, from the runs that it keeps.",
    )
    parser.add_argument("folder", type=Path, help="what --leaderboard named")
    folder = parser.parse_args(arguments).folder
    read_board(folder)  # which an empty folder is not
    with opened(folder) as board:
        print(write_outputs(board)["table"])


if __name__ == "__main__":
    sys.exit(main())
