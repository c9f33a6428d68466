"""The log of a run, which RecBole writes into the current folder."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from recbole.utils import init_logger

from recbole_idiomoe import compat
from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import DiskFullError, IdiomoeError
from recbole_idiomoe.base.files import DISK_FULL_ERRNOS, unwritable_reason
from recbole_idiomoe.config.run_config import RunConfig

LOG, CURVES = Path("log"), Path("log_tensorboard")


def start_log(config: RunConfig) -> None:
    """Start RecBole's log on the terminal and in a new file, which also gets all the settings.

    A rank other than 0 gets no log, curves or progress bars.

    Raises:
        IdiomoeError: the log cannot be written. If the disk is full later, logging raises a
            :class:`DiskFullError`.
    """
    root = logging.getLogger()
    if not distributed.is_main():
        root.handlers.clear()
        root.setLevel(logging.ERROR)
        compat.leave_out_tensorboard()
        config["show_progress"] = config["log_wandb"] = False
        return
    for handler in root.handlers[:]:  # of an earlier run; basicConfig would keep them
        root.removeHandler(handler)
        handler.close()
    for folder in (LOG, CURVES):
        if reason := unwritable_reason(folder):
            raise IdiomoeError(f"the log cannot be written ({reason}); run in another folder.")
    # RecBole checks for the folder before it makes it, which fails if two runs start together.
    (LOG / config["model"]).mkdir(parents=True, exist_ok=True)
    init_logger(config)
    record = root.makeRecord(root.name, logging.INFO, "", 0, str(config), (), None)
    for handler in root.handlers[:]:
        if isinstance(handler, logging.FileHandler):
            file = _LogFile(handler.baseFilename, encoding="utf-8")
            file.setLevel(handler.level)
            file.setFormatter(handler.formatter)
            root.removeHandler(handler)
            handler.close()
            root.addHandler(file)
            file.handle(record)


class _LogFile(logging.FileHandler):
    """A log file that stops the run when its disk is full; ``logging`` would print tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            raise DiskFullError(
                f"{LOG.absolute()} cannot be written: the disk is full; make room and try again "
                "(a run goes on with --resume)."
            ) from error
        super().handleError(record)
