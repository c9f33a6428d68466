"""The column of labels that an evaluation of labelled pairs compares scores with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.atomic_files import AtomicFile

_OF_TWO_CLASSES = {"auc", "logloss"}


class LabelSettings(Protocol):
    """The part of a run's configuration that its labels depend on."""

    def __getitem__(self, key: str) -> Any: ...


def check_label_column(config: LabelSettings, files: Sequence[AtomicFile]) -> None:
    """Check that labels, or the column that ``threshold`` makes them of, are in the files.

    Args:
        config: the config of the run.
        files: its files of interactions.

    Raises:
        DataError: the column is missing, not loaded, or not of numbers.
    """
    label, threshold = config["LABEL_FIELD"], config["threshold"]
    is_labeled = "labeled" in config["eval_args"]["mode"].values()
    if not is_labeled and not threshold:
        return
    column = next(iter(threshold)) if threshold else label
    needs = f"threshold={threshold} needs the column {column!r}"
    if not threshold:
        needs = (
            f"eval_args: mode=labeled needs the column {label!r} (LABEL_FIELD), or threshold: "
            "{rating: 3} with rating loaded"
        )
    for file in files:
        path, columns, load_col = file.path, file.columns, config["load_col"]
        loaded = "*" if load_col is None else load_col.get("inter", [])
        if column not in columns:
            raise DataError(f"{needs}; {path} has only {', '.join(columns)}.")
        if loaded != "*" and column not in loaded:
            raise DataError(
                f"{needs}; {path} has {column!r}, but load_col={{inter: [{', '.join(loaded)}]}} "
                "leaves it out; add it."
            )
        if columns[column] != "float":
            raise DataError(
                f"{needs}; in {path} it must be {column}:float, not {column}:{columns[column]}."
            )


def check_labels(config: LabelSettings, splits: dict[str, Any]) -> None:
    """Check that every split with labels has those that its metrics need.

    Args:
        config: the config of the run.
        splits: the split data sets that are evaluated, ``valid`` and ``test``.

    Raises:
        DataError: labels are not 0 and 1, or a split has only one of the two.
    """
    of_two = [name for name in config["metrics"] if name.lower() in _OF_TWO_CLASSES]
    for split, dataset in splits.items():
        if config["eval_args"]["mode"][split] != "labeled" or not of_two:
            continue
        found = np.unique(np.asarray(dataset.inter_feat[config["LABEL_FIELD"]]))
        if not np.isin(found, (0, 1)).all():
            raise DataError(
                f"{', '.join(of_two)} need labels of 0 and 1, and {config['LABEL_FIELD']} has "
                f"{found[~np.isin(found, (0, 1))][0]:g}; give threshold={{COLUMN: NUMBER}}."
            )
        if len(found) < 2:
            raise DataError(
                f"{', '.join(of_two)}: all labels of the {split} split are {found[0]:g}; give "
                "another threshold, or data with both."
            )
