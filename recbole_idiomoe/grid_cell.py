"""One run of a grid in a process of its own: ``python -m recbole_idiomoe.grid_cell FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_idiomoe.errors import IdiomoeError
from recbole_idiomoe.grid_runs import RESULT, SETTINGS
from recbole_idiomoe.quick_start import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what :mod:`recbole_idiomoe.grid_runs` put into a folder, and leave the result there."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    try:
        run(config_files=[Path(name) / SETTINGS], result_file=Path(name) / RESULT)
    except IdiomoeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
