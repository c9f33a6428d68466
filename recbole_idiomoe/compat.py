"""RecBole 1.2.1 on today's numpy, pandas and torch: every mend, and nothing else.

RecBole is left as installed. Each fault has one short function here that names
the file and line it mends; :func:`apply` calls them all. A mend reaches no
further than the RecBole module that needs it: where a module calls a function
of ``torch`` or ``pandas`` the wrong way, that module alone gets a stand-in for
the library, and everybody else keeps the real one.

ray needs no mend: only ``recbole.quick_start`` imports it, and we never do.
"""

from __future__ import annotations

import csv
import functools
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pickle import UnpicklingError
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from colorama.ansitowin32 import StreamWrapper

from recbole_idiomoe.base.archives import extract_zip
from recbole_idiomoe.base.errors import CheckpointError


@functools.cache
def apply() -> None:
    """Mend RecBole in this process; a second call does nothing.

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
    """``data/dataset/dataset.py:501,648,1217``: wrong, partly in silence, under pandas 3.

    There ``df[field].fillna(..., inplace=True)`` fills a copy, so that missing
    values stay, and ``agg(len)`` no longer means a length per row.

    Raises:
        ImportError: pandas 3 or newer is installed.
    """
    if int(pd.__version__.split(".")[0]) >= 3:
        raise ImportError(
            f"RecBole misreads datasets under pandas {pd.__version__}; "
            "pip install 'pandas<3' mends it."
        )


def restore_numpy_names() -> None:
    """``config/configurator.py:628-635``: names that numpy dropped in 1.24 and 2.0.

    ``Config`` restores the older ones out of ``np.float_`` and its like, which
    numpy 2 dropped in turn; ``data/interaction.py:31``, ``evaluator/metrics.py:90``
    and others then use them, also in a process that never built a ``Config``.
    """
    names = {
        "float_": np.float64,
        "complex_": np.complex128,
        "unicode_": np.str_,
        "bool": np.bool_,
        "int": np.int_,
        "float": np.float64,
        "complex": np.complex128,
        "object": np.object_,
        "str": np.str_,
        "long": np.int_,
        "unicode": np.str_,
    }
    for name, meant in names.items():
        if name not in vars(np):
            setattr(np, name, meant)


def keep_checkpoints_plain() -> None:
    """``trainer/trainer.py:308,323,583,770``, ``s3rec.py:120``: reading a checkpoint can run code.

    RecBole pickles its ``Config`` into every checkpoint, and a module of some models whose
    weights are among the others anyway; since 2.6 ``torch.load`` refuses both, rightly. Without
    them a checkpoint is tensors and plain values, and nothing else is read. ``s3rec.py`` names
    no device either, so that weights pretrained on a GPU could not be opened without one.
    """
    from recbole.model.sequential_recommender import s3rec
    from recbole.trainer import trainer

    def save(state: dict[str, Any], file: Any, **options: Any) -> None:
        # RecBole writes with a newer pickle protocol than ``weights_only`` reads.
        torch.save(_plain_state(state), file)

    def load(file: Any, map_location: Any = "cpu") -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of RecBole's pickle protocol, before the error
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
    """A checkpoint of RecBole's without what must be pickled; it asks ``config`` for the model."""
    others = state["other_parameter"].items()
    return {
        **{key: v.item() if isinstance(v, np.generic) else v for key, v in state.items()},
        "config": {"model": state["config"]["model"]},
        "other_parameter": {k: v for k, v in others if not isinstance(v, torch.nn.Module)},
    }


def forget_pickled_loaders() -> None:
    """``data/utils.py:121``: a file that lies in ``checkpoint_dir`` by chance is unpickled and run.

    It has precedence over the data, too, with filters compared and the rest of the protocol not.
    """
    from recbole.data import utils

    utils.load_split_dataloaders = lambda config: None


def extract_into_the_folder() -> None:
    """``utils/url.py:99``: whatever an archive's members are called or weigh, they are written."""
    from recbole.data.dataset import dataset
    from recbole.utils import url

    url.extract_zip = dataset.extract_zip = extract_zip


def skip_lonely_barrier() -> None:
    """``data/dataset/dataset.py:252``: a download ends in a barrier, process group or not.

    Of several processes of ours, one downloads before the others look.
    """
    from recbole.data.dataset import dataset

    def barrier() -> None:
        return None

    dataset.torch = stand_in(torch, distributed=stand_in(torch.distributed, barrier=barrier))


def read_quotes_as_text() -> None:
    """``data/dataset/dataset.py:480``: a field that starts with an odd ``"`` ends the reading.

    Atomic files know no quoting: a quote is a character like any other. And RecBole asks for
    pandas' parser in Python, which takes ten times as long as that in C and, with ten million
    rows, gigabytes for lists of their fields. Both read the same, numbers to the last bit.
    """
    from recbole.data.dataset import dataset

    def read_csv(file: str, *, delimiter: str, **options: Any) -> pd.DataFrame:
        if len(delimiter) == 1:  # pandas takes more for a regular expression, for Python alone
            options |= {"engine": "c", "float_precision": "round_trip"}
        return pd.read_csv(file, delimiter=delimiter, quoting=csv.QUOTE_NONE, **options)

    dataset.pd = stand_in(pd, read_csv=read_csv)


def use_current_grad_scaler() -> None:
    """``trainer/trainer.py:245``: ``torch.cuda.amp.GradScaler`` warns once an epoch."""
    from recbole.trainer import trainer

    scaler = functools.partial(torch.amp.GradScaler, "cuda")
    trainer.amp = stand_in(torch.cuda.amp, GradScaler=scaler)


def undo_anomaly_detection() -> None:
    """``model/sequential_recommender/sine.py:25``: one model's import slows every other.

    RecBole imports all its sequential models with the first, and this line turns autograd's
    anomaly detection on for the whole process: a stack trace for every operation and a test
    for NaN after each of them in the backward pass.
    """
    import recbole.model.sequential_recommender  # noqa: F401  the line runs once, now

    torch.autograd.set_detect_anomaly(False)


@contextmanager
def curves_closed() -> Iterator[None]:
    """``trainer/trainer.py:113``: no trainer closes what it opens for tensorboard.

    Each file that stays open leaves a thread. Inside the block every file that a trainer opens is
    noted, and at its end it is closed. A thread that cannot write prints nothing meanwhile: its
    error is raised again for whoever writes next, at the latest when the file is closed.
    """
    from recbole.trainer import trainer

    opened: list[Any] = []
    open_curves, print_error = trainer.get_tensorboard, threading.excepthook

    def noted(logger: logging.Logger) -> Any:
        opened.append(open_curves(logger))
        return opened[-1]

    def not_of_curves(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            print_error(args)

    trainer.get_tensorboard, threading.excepthook = noted, not_of_curves
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
        trainer.get_tensorboard, threading.excepthook = open_curves, print_error


def leave_out_tensorboard() -> None:
    """``trainer/trainer.py:113``: every trainer opens a file for tensorboard, in every process.

    Not among what :func:`apply` does: for processes that are not to write.
    """
    from recbole.trainer import trainer

    trainer.get_tensorboard = lambda logger: SimpleNamespace(
        add_scalar=lambda *args: None, add_hparams=lambda *args: None, close=lambda: None
    )


def silence_pandas_3_warnings() -> None:
    """``data/dataset/dataset.py:501,648,1217``: pandas 2 does as meant, and warns that 3 will not.

    :func:`refuse_pandas_3` sees to the rest.
    """
    for message in (
        "A value is trying to be set on a copy",
        "Downcasting object dtype arrays",
        "using <built-in function len> in Series.agg",
    ):
        warnings.filterwarnings(
            "ignore",
            message=message,
            category=FutureWarning,
            module=r"recbole\.data\.dataset",
        )


def wrap_the_terminal_once() -> None:
    """``utils/logger.py:74``: each run wraps stdout and stderr anew, around all wraps before.

    Some 250 runs into a process, what is printed recurses too deep, and the run ends in that.
    """
    from recbole.utils import logger

    wrap = logger.init

    def wrap_once(**options: Any) -> None:
        if not isinstance(sys.stdout, StreamWrapper):
            wrap(**options)

    logger.init = wrap_once


def stand_in(module: ModuleType, **replaced: Any) -> ModuleType:
    """``module`` as seen by one importer: the same, but for the names in ``replaced``."""
    double = ModuleType(module.__name__, f"{module.__name__}, mended for RecBole.")
    vars(double).update(replaced, __getattr__=functools.partial(getattr, module))
    return double
