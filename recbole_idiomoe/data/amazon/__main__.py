"""``python -m recbole_idiomoe.data.amazon --reviews=FILE --metadata=FILE --dataset=NAME``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.command_line import Parser, run_program
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.amazon.building import Dumps, report
from recbole_idiomoe.data.amazon.writing import CORE, MAX_MALFORMED, convert


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert dumps; returns the exit code."""
    parser = Parser(
        prog="python -m recbole_idiomoe.data.amazon",
        description="RecBole's atomic files from the public dumps of Amazon reviews (2014, 2018, "
        "2023), which are fetched unless they are given.",
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the data set")
    parser.add_argument(
        "--data_path", default="dataset", metavar="FOLDER", help="folder that gets a folder NAME"
    )
    parser.add_argument("--reviews", metavar="FILE", help="dump of reviews, gzipped or plain")
    parser.add_argument("--metadata", metavar="FILE", help="dump of the products' metadata")
    parser.add_argument(
        "--core",
        type=int,
        default=CORE,
        metavar="K",
        help="fewest interactions of a user and of an item, as in the paper",
    )
    parser.add_argument(
        "--max_malformed",
        type=float,
        default=MAX_MALFORMED,
        metavar="SHARE",
        help="largest share of malformed lines, which are skipped (ten are always allowed, "
        "unless it is 0)",
    )
    logging.basicConfig(format="%(message)s")
    logging.getLogger("recbole_idiomoe").setLevel(logging.INFO)
    return run_program(
        lambda: print(_run(parser.parse_args(arguments))),
        interrupted="interrupted; the same command goes on with what is fetched",
    )


def _run(given: argparse.Namespace) -> str:
    """Convert, and return the report to print."""
    if given.core < 1 or not 0 <= given.max_malformed <= 1:
        raise SettingError("--core must be at least 1, and --max_malformed between 0 and 1.")
    if bool(given.reviews) != bool(given.metadata):
        raise SettingError("--reviews and --metadata go together; give both, or neither to fetch.")
    folder = Path(given.data_path) / given.dataset
    file = yaml_files.properties_path() / "dataset" / f"{given.dataset}.yaml"
    entry = yaml_files.read_settings(file).get("dumps") if file.is_file() else None
    dumps = Dumps.from_setting(entry) if entry else None
    if given.reviews:
        reviews, metadata = Path(given.reviews), Path(given.metadata)
    elif dumps:
        reviews, metadata = dumps.fetch(folder.with_name(f"{folder.name}-dumps"))
    else:
        raise SettingError(
            f"the addresses of {given.dataset}'s dumps are unknown; give --reviews and --metadata."
        )
    return report(convert(reviews, metadata, folder, given.core, given.max_malformed), dumps)


if __name__ == "__main__":
    sys.exit(main())
