"""Fixes that make RecBole 1.2.1 work with current versions of numpy, pandas and torch.

RecBole's files stay as installed. Each fault has one short function here that names the faulty
file and line; :func:`apply` calls all of them. A fix is limited to the RecBole module that needs
it: if a module calls a function of ``torch`` or ``pandas`` in the wrong way, only that module gets
a stand-in for the library.

ray needs no fix: only ``recbole.quick_start`` imports it, which this package does not use.
"""

from __future__ import annotations

import csv
import functools
import logging
import shutil
import stat
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from pickle import UnpicklingError
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from colorama.ansitowin32 import StreamWrapper

from recbole_idiomoe.base.errors import CheckpointError, DataError


@functools.cache
def apply() -> None:
    """Fix RecBole in this process; a second call does nothing.

    Raises:
        ImportError: pandas 3 or newer is installed.
    """
    refuse_pandas_3()
    restore_numpy_names()
    keep_checkpoints_plain()
    forget_pickled_loaders()
    extract_into_the_folder()
    skip_lonely_barrier()
    read_quotes_as_text()
    use_current_grad_scaler()
    undo_anomaly_detection()
    silence_pandas_3_warnings()
    wrap_the_terminal_once()


def refuse_pandas_3() -> None:
    """``data/dataset/dataset.py:501,648,1217``: wrong results, partly silent, under pandas 3.

    With pandas 3, ``df[field].fillna(..., inplace=True)`` fills a copy, so that missing values
    stay, and ``agg(len)`` is no longer the length of each row.
    """
    if int(pd.__version__.split(".")[0]) >= 3:
        raise ImportError(
            f"RecBole misreads datasets under pandas {pd.__version__}; "
            "pip install 'pandas<3' fixes it."
        )


def restore_numpy_names() -> None:
    """``config/configurator.py:628-635``: names that numpy removed in 1.24 and 2.0.

    ``Config`` restores the names of 1.24 from ``np.float_`` and others, which numpy 2 removed.
    ``data/interaction.py:31``, ``evaluator/metrics.py:90`` and others use the restored names, also
    in a process that never creates a ``Config``.
    """
    types = {
        np.float64: ("float_", "float"),
        np.complex128: ("complex_", "complex"),
        np.str_: ("unicode_", "unicode", "str"),
        np.int_: ("int", "long"),
        np.bool_: ("bool",),
        np.object_: ("object",),
    }
    for meant, names in types.items():
        for name in names:
            if name not in vars(np):
                setattr(np, name, meant)


def keep_checkpoints_plain() -> None:
    """``trainer/trainer.py:308,323,583,770``, ``s3rec.py:120``: reading a checkpoint can run code.

    RecBole pickles its ``Config`` into every checkpoint, and for some models a module whose
    weights are saved anyway. Since 2.6, ``torch.load`` refuses both by default. Without them, a
    checkpoint has only tensors and plain values, and only these are read. ``s3rec.py`` also gives
    no device, so that weights from a GPU could not be read on a machine without one.
    """
    from recbole.model.sequential_recommender import s3rec
    from recbole.trainer import trainer

    def save(state: dict[str, Any], file: Any, **options: Any) -> None:
        # Drops RecBole's pickle protocol, which is newer than ``weights_only`` reads.
        torch.save(_plain_state(state), file)

    def load(file: Any, map_location: Any = "cpu") -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about RecBole's pickle protocol, before the error
                return torch.load(file, map_location=map_location, weights_only=True)
        except UnpicklingError as error:
            raise CheckpointError(
                f"{file} cannot be read: it is damaged, or pickled, which can run code. Where it "
                "is trusted, torch.save({'state_dict': torch.load(FILE, weights_only=False)"
                "['state_dict']}, NEW) makes a plain one for pre_model_path."
            ) from error

    for module in (trainer, s3rec):
        module.torch = stand_in(torch, save=save, load=load)


def _plain_state(state: dict[str, Any]) -> dict[str, Any]:
    """RecBole's checkpoint without pickled objects; RecBole reads only the model of ``config``."""
    others = state["other_parameter"].items()
    return {
        **{key: v.item() if isinstance(v, np.generic) else v for key, v in state.items()},
        "config": {"model": state["config"]["model"]},
        "other_parameter": {k: v for k, v in others if not isinstance(v, torch.nn.Module)},
    }


def forget_pickled_loaders() -> None:
    """``data/utils.py:121``: a matching file in ``checkpoint_dir`` is unpickled and can run code.

    It also replaces the data, after a comparison of the filters but not of the whole protocol.
    """
    from recbole.data import utils

    utils.load_split_dataloaders = lambda config: None


def extract_into_the_folder() -> None:
    """``utils/url.py:99``: members of an archive are written whatever their path and size."""
    from recbole.data.dataset import dataset
    from recbole.utils import url

    url.extract_zip = dataset.extract_zip = extract_zip


def extract_zip(archive: str | Path, folder: str | Path) -> None:
    """Unpack ``archive`` into ``folder`` and check the checksum of every file.

    Names of members are read as on Windows, where both slashes separate folders.

    Raises:
        DataError: a member is a link or would lie outside ``folder``, or there is not enough
            room; nothing is written then.
        zipfile.BadZipFile: the file is not a zip archive, or is truncated or altered.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            path, mode = PureWindowsPath(member.filename), member.external_attr >> 16
            if path.anchor or ".." in path.parts or stat.S_ISLNK(mode):
                raise DataError(
                    f"{archive} holds {member.filename!r}, which would lie outside {folder}; "
                    "nothing of it was unpacked"
                )
        # zipfile reads no more bytes of a member than its declared size.
        size, free = sum(m.file_size for m in opened.infolist()), shutil.disk_usage(folder).free
        if size > free:
            raise DataError(
                f"{archive} unpacks to {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are "
                f"free for {folder}; nothing of it was unpacked"
            )
        opened.extractall(folder)


def skip_lonely_barrier() -> None:
    """``data/dataset/dataset.py:252``: a download ends in a barrier, even without a process group.

    In a run of several processes, rank 0 downloads before the others look for the files.
    """
    from recbole.data.dataset import dataset

    without_barrier = stand_in(torch.distributed, barrier=lambda: None)
    dataset.torch = stand_in(torch, distributed=without_barrier)


def read_quotes_as_text() -> None:
    """``data/dataset/dataset.py:480``: a field that starts with an unpaired ``"`` ends the reading.

    Atomic files have no quoting: a quote is a character like any other. RecBole also chooses
    pandas' Python parser, which takes ten times as long as the C parser and, for ten million
    rows, gigabytes of memory. Both parsers read the same values, to the last bit.
    """
    from recbole.data.dataset import dataset

    def read_csv(file: str, *, delimiter: str, **options: Any) -> pd.DataFrame:
        if len(delimiter) == 1:  # a longer one is a regular expression, for the Python parser
            options |= {"engine": "c", "float_precision": "round_trip"}
        return pd.read_csv(file, delimiter=delimiter, quoting=csv.QUOTE_NONE, **options)

    dataset.pd = stand_in(pd, read_csv=read_csv)


def use_current_grad_scaler() -> None:
    """``trainer/trainer.py:245``: ``torch.cuda.amp.GradScaler`` warns in every epoch."""
    from recbole.trainer import trainer

    scaler = functools.partial(torch.amp.GradScaler, "cuda")
    trainer.amp = stand_in(torch.cuda.amp, GradScaler=scaler)


def undo_anomaly_detection() -> None:
    """``model/sequential_recommender/sine.py:25``: the import of one model slows all others.

    RecBole imports all sequential models with the first one. This line turns on autograd's
    anomaly detection for the process: a stack trace for every operation, and a test for NaN after
    each operation of the backward pass.
    """
    import recbole.model.sequential_recommender  # noqa: F401  runs the line once, before it is undone

    torch.autograd.set_detect_anomaly(False)


@contextmanager
def curves_closed() -> Iterator[None]:
    """``trainer/trainer.py:113``: no trainer closes the files that it opens for tensorboard.

    Each open file has a thread. After the block, the files that trainers opened in it are closed.
    Inside the block, a thread that cannot write prints no traceback: tensorboard raises its error
    again at the next write, at the latest when the file is closed.
    """
    from recbole.trainer import trainer

    opened: list[Any] = []
    open_curves, print_error = trainer.get_tensorboard, threading.excepthook

    def open_noted(logger: logging.Logger) -> Any:
        opened.append(open_curves(logger))
        return opened[-1]

    def print_others(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            print_error(args)

    trainer.get_tensorboard, threading.excepthook = open_noted, print_others
    try:
        yield
        while opened:
            opened[0].close()
            opened.pop(0)
    finally:
        for curves in opened:
            with suppress(OSError):  # the error that ended the run matters more
                curves.close()
        trainer.get_tensorboard, threading.excepthook = open_curves, print_error


def leave_out_tensorboard() -> None:
    """``trainer/trainer.py:113``: every trainer opens a file for tensorboard, in every process.

    Only called in processes that must not write, not by :func:`apply`.
    """
    from recbole.trainer import trainer

    trainer.get_tensorboard = lambda logger: SimpleNamespace(
        add_scalar=lambda *args: None, add_hparams=lambda *args: None, close=lambda: None
    )


def silence_pandas_3_warnings() -> None:
    """``data/dataset/dataset.py:501,648,1217``: pandas 2 is correct, but warns about pandas 3.

    :func:`refuse_pandas_3` makes sure that pandas 3 is not used.
    """
    for message in (
        "A value is trying to be set on a copy",
        "Downcasting object dtype arrays",
        "using <built-in function len> in Series.agg",
    ):
        warnings.filterwarnings("ignore", message, FutureWarning, r"recbole\.data\.dataset")


def wrap_the_terminal_once() -> None:
    """``utils/logger.py:74``: each run wraps stdout and stderr again, around all earlier wrappers.

    After about 250 runs in one process, printing fails with a ``RecursionError``.
    """
    from recbole.utils import logger

    wrap = logger.init

    def wrap_once(**options: Any) -> None:
        if not isinstance(sys.stdout, StreamWrapper):
            wrap(**options)

    logger.init = wrap_once


def stand_in(module: ModuleType, **replaced: Any) -> ModuleType:
    """A copy of ``module`` in which the names in ``replaced`` have other values."""
    double = ModuleType(module.__name__, f"{module.__name__}, fixed for RecBole.")
    vars(double).update(replaced, __getattr__=functools.partial(getattr, module))
    return double
