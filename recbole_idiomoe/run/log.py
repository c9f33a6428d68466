"""A run's log and its curves for TensorBoard, which RecBole writes wherever it stands."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recbole.trainer import trainer as recbole_trainer
from recbole.utils import init_logger

from recbole_idiomoe import compat
from recbole_idiomoe.base.errors import DiskFullError, IdiomoeError
from recbole_idiomoe.base.files import DISK_FULL_ERRNOS, unwritable_reason
from recbole_idiomoe.config.run_config import RunConfig

LOG, CURVES = Path("log"), Path("log_tensorboard")


def start_log(config: RunConfig) -> None:
    """RecBole's log to the terminal and a new file; all the settings go into the file alone.

    Raises:
        IdiomoeError: the log cannot be written, now or, as :class:`DiskFullError`, in its midst.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:  # of the run before: basicConfig would keep them
        root.removeHandler(handler)
        handler.close()
    for folder in (LOG, CURVES):
        if reason := unwritable_reason(folder):
            raise IdiomoeError(f"the log cannot be written ({reason}); run in another folder.")
    # RecBole looks first and makes then: of several runs that start together, one would fail.
    (LOG / config["model"]).mkdir(parents=True, exist_ok=True)
    init_logger(config)
    record = root.makeRecord(root.name, logging.INFO, "", 0, str(config), (), None)
    for handler in root.handlers:
        if isinstance(handler, logging.FileHandler):
            vars(handler)["handleError"] = _stop_at_a_full_disk
            handler.handle(record)


def start_no_log(config: RunConfig) -> None:
    """For a process that is not to write or print."""
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.ERROR)
    compat.leave_out_tensorboard()
    config["show_progress"] = config["log_wandb"] = False


def _stop_at_a_full_disk(record: logging.LogRecord) -> None:
    """What ``logging`` does about an error of writing; by itself, a traceback for every line."""
    error = sys.exc_info()[1]
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        raise DiskFullError(
            f"{LOG.absolute()} cannot be written: the disk is full; make room and try again (a run "
            "goes on with --resume)."
        ) from error
    logging.Handler().handleError(record)


@contextmanager
def curves_closed() -> Iterator[None]:
    """Close what trainers inside open for TensorBoard: each that stays open leaves a thread."""
    opened: list[Any] = []
    open_curves, print_error = recbole_trainer.get_tensorboard, threading.excepthook

    def noted(logger: logging.Logger) -> Any:
        opened.append(open_curves(logger))
        return opened[-1]

    def not_of_curves(args: threading.ExceptHookArgs) -> None:
        # It is raised again for whoever writes next, at the latest when the file is closed.
        if type(args.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            print_error(args)

    recbole_trainer.get_tensorboard, threading.excepthook = noted, not_of_curves
    try:
        yield
        for curves in opened:
            curves.close()
    except BaseException:
        for curves in opened:
            with suppress(OSError):  # what stopped the run says more
                curves.close()
        raise
    finally:
        recbole_trainer.get_tensorboard, threading.excepthook = open_curves, print_error
