"""Checks of settings that RecBole accepts, or refuses late and unclearly, before anything runs.

Each function raises a one-line :class:`SettingError` if its check fails.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_idiomoe.base.errors import MissingLibraryError, SettingError, nearest

_AMOUNTS = {"epochs", "pretrain_epochs", "train_batch_size", "eval_batch_size", "save_step"}
_AMOUNTS |= {"MAX_ITEM_LIST_LENGTH", "hidden_size", "n_layers", "n_heads", "inner_size"}
_POSITIVE = _AMOUNTS | {"learning_rate", "temperature"}
_DECIMALS = {"loss_decimal_place", "metric_decimal_place"}
_NOT_NEGATIVE = _DECIMALS | {"weight_decay", "stopping_step", "worker", "seed"}
_WHOLE = _DECIMALS | _AMOUNTS | {"stopping_step", "eval_step", "worker", "seed"}
_TEXT = {"checkpoint_dir", "data_path", "encoding", "field_separator", "seq_separator"}
_TEXT |= {"USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "RATING_FIELD", "LABEL_FIELD"}
_TEXT |= {"LIST_SUFFIX", "ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD", "NEG_PREFIX", "wandb_project"}
_PICKLED = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
_MAX_SEED = 2**32 - 1  # numpy's
_MOST_DECIMALS = 15  # numpy rounds to nan if there are too many
_LARGEST = float(np.finfo(np.float32).max)
_CHOICES = {
    # RecBole trains with Adam, after one line in the log, when it does not know the name. Its
    # sparse_adam needs gradients that none of its sequential models has.
    "learner": ("adam", "adamw", "sgd", "adagrad", "rmsprop"),
    "hidden_act": ("gelu", "relu", "swish", "tanh", "sigmoid"),
    "train_stage": ("pretrain", "finetune"),
    "state": ("debug", "info", "warning", "error", "critical"),
    "rm_dup_inter": ("first", "last", "None"),
}


def check_dataset_name(dataset: str) -> None:
    """``dataset`` is a name and no path: RecBole makes file names from it."""
    if "/" in dataset or "\\" in dataset:
        raise SettingError(
            f"dataset={dataset!r} is a path; give the name of its folder, and the folder above as "
            "--data_path."
        )


def check_names(given: Collection[str], known: Collection[str], model: str) -> None:
    """Every key in ``given`` is in ``known``; RecBole takes any key, and ignores a misspelt one."""
    for name in given:
        if name not in known:
            advice = f"neither RecBole, {model} nor this package reads it."
            if near := nearest(name.replace("-", "_"), known):
                advice = f"did you mean {near!r}?"
            raise SettingError(f"unknown setting {name!r}; {advice}")


def check_values(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """RecBole's settings in ``given`` have the type of their default, and are in range."""
    for name, value in given.items():
        if name in _PICKLED and value:
            raise SettingError(
                f"{name}={value!r}: RecBole pickles prepared data, and reading that can run code; "
                "leave it out, data are prepared anew each time."
            )
        default = defaults.get(name)
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise SettingError(f"{name}={value!r} must be True or False.")
        elif isinstance(default, int | float) and not is_number(value):
            raise SettingError(f"{name}={value!r} must be a number, as {default}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"{name}={value!r} must be a finite number.")
        if isinstance(value, float) and abs(value) > _LARGEST:
            raise SettingError(f"{name}={value!r} must be at most {_LARGEST:.4g}.")
        if name in _WHOLE and not isinstance(value, int):
            raise SettingError(f"{name}={value!r} must be a whole number.")
        if name in _POSITIVE and not value > 0:
            raise SettingError(f"{name}={value!r} must be above 0.")
        if name in _NOT_NEGATIVE and value < 0:
            raise SettingError(f"{name}={value!r} must be at least 0.")
        if name in _DECIMALS and value > _MOST_DECIMALS:
            raise SettingError(f"{name}={value} must be at most {_MOST_DECIMALS}.")
        if name == "seed" and value > _MAX_SEED:
            raise SettingError(f"seed={value} must be at most {_MAX_SEED}.")
        if name in _TEXT and (not isinstance(value, str) or not value):
            raise SettingError(f"{name}={value!r} must be text; put it in quotes.")
        if name in _CHOICES and str(value).lower() not in map(str.lower, _CHOICES[name]):
            raise SettingError(f"{name}={value!r} is not one of {', '.join(_CHOICES[name])}.")
        if name == "loss_type" and value not in ("CE", "BPR"):
            raise SettingError(f"loss_type={value!r} is not one of CE, BPR.")


def check_trackers(final: Mapping[str, Any]) -> None:
    """Weights & Biases is installed, if it is asked for.

    Raises:
        MissingLibraryError: it is not.
    """
    if final["log_wandb"]:
        try:
            # Its runs are kept in ./wandb, which Python can import as a package without a content.
            from wandb import init  # noqa: F401
        except ImportError as error:
            raise MissingLibraryError("log_wandb=True needs wandb: pip install wandb") from error


def check_workers(count: int) -> None:
    """The machine has the shared memory that ``count`` loader workers talk through."""
    if not count:
        return
    try:
        for _ in range(count):
            multiprocessing.Queue().close()
    except OSError as error:
        raise SettingError(
            f"worker={count} needs shared memory, as /dev/shm, which this machine does not give "
            f"({error.strerror}); set worker to 0."
        ) from error


def check_text_file(name: str, path: str) -> None:
    """The file ``path``, which the setting ``name`` gives, can be read and holds UTF-8 text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(f"{name}={path} is not UTF-8; save it as UTF-8.") from error
    except OSError as error:
        raise SettingError(f"{name}={path} cannot be read ({error.strerror}).") from error
    if not text.strip():
        raise SettingError(f"{name}={path} is empty; name a file with text, or leave it out.")


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether ``value`` is a number above 0."""
    return is_number(value) and value > 0
