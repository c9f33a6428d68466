"""``python -m recbole_idiomoe.leaderboard FOLDER``: its files anew, from the runs it keeps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_idiomoe.errors import IdiomoeError
from recbole_idiomoe.leaderboard.board import opened, read_board
from recbole_idiomoe.leaderboard.outputs import write_outputs


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files of the leaderboard that is named, and print its table."""
    names = sys.argv[1:] if arguments is None else arguments
    try:
        if len(names) != 1:
            raise IdiomoeError("name the folder of one leaderboard.")
        read_board(Path(names[0]))  # which an empty folder is not
        with opened(Path(names[0])) as board:
            print(write_outputs(board)["table"])
    except IdiomoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
