"""Print what a trained model recommends.

python -m recbole_idiomoe.recommend FOLDER --history=ID,ID --k=10
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from recbole_idiomoe.base.command_line import Parser, run_program
from recbole_idiomoe.data.catalog import read_history
from recbole_idiomoe.recommend.loading import load
from recbole_idiomoe.report.formatting import WIDTH


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of recommendations and return the exit code."""
    return run_program(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m recbole_idiomoe.recommend",
        description="Print what a trained model recommends after a history.",
    )
    parser.add_argument("folder", help="folder of a run, under saved/")
    parser.add_argument(
        "--history",
        default="",
        help="item ids, oldest first: ID,ID,...; those with a comma in quotes, as in a CSV file",
    )
    parser.add_argument("--query", help="what the user asks for, in words")
    parser.add_argument("--k", type=int, default=10, help="how many items")
    parser.add_argument(
        "--include_seen", action="store_true", help="rank the items of the history too"
    )
    parser.add_argument(
        "--data_path", help="folder of the data sets, if it has moved since the run"
    )
    options = parser.parse_args(arguments)
    history = read_history(options.history, "--history")
    found = load(options.folder, data_path=options.data_path).recommend(
        history, options.k, exclude_seen=not options.include_seen, query=options.query
    )
    ids = [_printable(item.item_id) for item in found]
    width = max(map(len, ["item", *ids]))
    print(f"{'#':>3}  {'item':<{width}}  {'score':>8}  title")
    for rank, (item_id, item) in enumerate(zip(ids, found, strict=True), start=1):
        start = f"{rank:>3}  {item_id:<{width}}  {item.score:>8.3f}  "
        room = max(20, WIDTH - len(start))
        title = item.title if len(item.title) <= room else item.title[: room - 1] + "…"
        print(start + _printable(title))


def _printable(text: str) -> str:
    """Escape control characters."""
    return text if text.isprintable() else repr(text)[1:-1]


if __name__ == "__main__":
    sys.exit(main())
