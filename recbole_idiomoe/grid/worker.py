"""One run of a grid in a process of its own: ``recbole_idiomoe.grid.worker FOLDER PID [FILE]``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.grid.running import MODELS, RESULT, SETTINGS
from recbole_idiomoe.models.registration import restore
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs.plan import plan
from recbole_idiomoe.runs.request import RunRequest
from recbole_idiomoe.training.loss_watch import users_kept

_WATCH_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what :mod:`recbole_idiomoe.grid.running` put into a folder, and leave the result there.

    It ends with the process that is named, its parent. The users of a loss that is no number go
    to the file, if there is one.
    """
    name, parent, *users_file = sys.argv[1:] if arguments is None else arguments
    Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        _import_models(Path(name) / MODELS)
        with users_kept(Path(*users_file) if users_file else None):
            asked = json.loads((Path(name) / SETTINGS).read_text(encoding="utf-8"))
            result = execution.execute(plan(RunRequest(**asked)))
            write_text(Path(name) / RESULT, json.dumps(result.to_json()))
    except IdiomoeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _import_models(file: Path) -> None:
    """Make the models known that the parent process registered, from where it imported them."""
    registered = json.loads(file.read_text(encoding="utf-8"))
    sys.path += [place for place in registered["path"] if place not in sys.path]
    restore(registered["models"])


def _end_with(parent: int) -> None:
    """A grid that is killed cannot end its processes, which would keep the GPU from the next."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
