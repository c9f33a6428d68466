"""The protocol of a run, as it is printed with every table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_idiomoe.config.run_config import RunConfig

FILTERS = (
    "user_inter_num_interval",
    "item_inter_num_interval",
    "val_interval",
    "rm_dup_inter",
    "filter_inter_by_user_or_item",
)

_ORDERS = {"TO": "TO by the exact times of the file"}
"""RecBole's names of the orders in :func:`~recbole_idiomoe.config.checks.check_eval_args`."""


def protocol(config: RunConfig, item_num: int, dataset: Any = None) -> dict[str, Any]:
    """What the metrics of a run depend on besides the model.

    Args:
        config: the config of the run.
        item_num: number of items in the catalogue, without the padding item.
        dataset: the loaded data set; None leaves out what is only known from it.
    """
    mode = config["eval_args"]["mode"]
    share, epsilon = config["cold_start"], config["cold_start_epsilon"]
    return {
        **_split(config),
        **({} if dataset is None else _of_files(dataset)),
        "candidates": f"all {item_num} items" if set(mode.values()) == {"full"} else mode,
        "ties": "in random order",
        "mask_seen": config["mask_seen"],
        "cold_start": {"unseen_test_items": share, "epsilon": epsilon} if share else None,
        "max_history": config["MAX_ITEM_LIST_LENGTH"],
        "metrics": config["metrics"],
        "topk": config["topk"],
        "valid_metric": config["valid_metric"],
        "trained_on": "training interactions only",
    }


def _split(config: RunConfig) -> dict[str, Any]:
    """How the interactions of a user are filtered, ordered and split.

    RecBole filters nothing in a split that the user has made.
    """
    parts, how = config["benchmark_filename"], config["eval_args"]
    if parts is not None:
        given = "as given by the files"
        split = f"{given} {', '.join(parts)}"
        return {"split": split, "order": given, "group_by": None, "filters": "none"}
    return {
        "split": " ".join(f"{kind} {value}" for kind, value in how["split"].items()),
        "order": _ORDERS[how["order"]],
        "group_by": how["group_by"],
        "filters": {name: config[name] for name in FILTERS},
    }


def _of_files(dataset: Any) -> dict[str, Any]:
    """What is only known once the files are read; None where there is nothing to say."""
    return {
        **_rows(dataset),
        "times": None if dataset.time_unit == "seconds" else dataset.time_unit,
        "left_out": _counted(dataset.left_out),
    }


def _rows(dataset: Any) -> dict[str, Any]:
    """The rows of a ready-made split, and where their histories are from."""
    if not getattr(dataset, "part_rows", {}):
        return {"rows": None, "histories": None}
    histories = "from the lists of the files" if dataset.has_lists else "from the rows before"
    return {"rows": _counted(dataset.part_rows), "histories": histories}


def _counted(counts: Mapping[str, int]) -> str | None:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or None
