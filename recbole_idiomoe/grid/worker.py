"""One run of a grid in its own process: ``python -m recbole_idiomoe.grid.worker FOLDER``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from threading import Thread

from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.grid.running import RESULT, TASK
from recbole_idiomoe.models.registration import restore
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs.plan import plan
from recbole_idiomoe.runs.request import RunRequest
from recbole_idiomoe.training.loss_watch import users_kept

_WATCH_S = 1.0


def main(folder: Path) -> int:
    """Run the task that :mod:`recbole_idiomoe.grid.running` wrote into ``folder``."""
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    Thread(target=_end_with, args=(task["parent"],), daemon=True).start()
    try:
        # Models that the parent process registered are imported from where it found them.
        sys.path += [place for place in task["path"] if place not in sys.path]
        restore(task["models"])
        with users_kept(Path(task["users_file"]) if task["users_file"] else None):
            result = execution.execute(plan(RunRequest(**task["request"])))
            write_text(folder / RESULT, json.dumps(result.to_json()))
    except IdiomoeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _end_with(parent: int) -> None:
    """End this process when its parent is killed; otherwise it would keep the GPU."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
