"""One run of a grid in a process of its own: ``python -m recbole_idiomoe.grid_cell FOLDER PID``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from recbole_idiomoe.errors import IdiomoeError
from recbole_idiomoe.grid_runs import RESULT, SETTINGS
from recbole_idiomoe.quick_start import run

_WATCH_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what :mod:`recbole_idiomoe.grid_runs` put into a folder, and leave the result there.

    It ends with the process that is named, its parent.
    """
    name, parent = sys.argv[1:] if arguments is None else arguments
    Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        run(config_files=[Path(name) / SETTINGS], result_file=Path(name) / RESULT)
    except IdiomoeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _end_with(parent: int) -> None:
    """A grid that is killed cannot end its processes, which would keep the GPU from the next."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
