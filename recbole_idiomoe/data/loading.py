"""Loading of a data set by RecBole, with errors in one line."""

from __future__ import annotations

import logging
from typing import Any

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import DataError, IdiomoeError, SettingError
from recbole_idiomoe.data.cold_start import hold_out_items
from recbole_idiomoe.data.columns import check_atomic_files
from recbole_idiomoe.data.location import DataSettings, locate

logger = logging.getLogger()


def load_dataset(config: DataSettings) -> Any:
    """Call :func:`find_data`, then :func:`read_dataset`; raises as they do."""
    find_data(config)
    return read_dataset(config)


def find_data(config: DataSettings) -> None:
    """Set the files of the data set in ``config``, and check them before RecBole reads them.

    Raises:
        DataError: files are missing or cannot be read.
    """
    if distributed.world_size() > 1:  # one process downloads files for all
        distributed.from_main(lambda: locate(config))
    locate(config)
    check_atomic_files(config)


def read_dataset(config: DataSettings) -> Any:
    """Load the dataset that :func:`find_data` found, with its filters and its cold start.

    Raises:
        DataError: RecBole cannot load the files, or they leave nothing to learn from.
        SettingError: ``topk`` asks for more items than there are.
    """
    is_ready_made = config["benchmark_filename"] is not None
    try:
        dataset = config.dataset_class(config)
    except IdiomoeError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if reason.startswith("Some feat is empty"):
            reason = (
                "nothing is left after the filters; loosen user_inter_num_interval, "
                "item_inter_num_interval or val_interval, or give items that users had a row in "
                "the .item file (without one RecBole leaves them out)."
            )
        raise DataError(
            f"{config['dataset_label']} in {config['data_path']}: RecBole cannot load it: {reason}"
        ) from error
    for what, count in dataset.left_out.items():
        logger.warning(f"left out: {count:,} {what}")
    if not is_ready_made:
        _check_longest(config, dataset)
    for part, rows in dataset.part_rows.items() if is_ready_made else ():
        if not rows:
            raise DataError(
                f"{config['dataset_label']}: nothing is left for {part}; its file needs rows whose "
                "users have a history."
            )
    items, topk = dataset.item_num - 1, config["topk"]
    if max(topk) > items:
        raise SettingError(
            f"topk={topk} asks for more than the {items} items of {config['dataset_label']}; "
            "lower it, and valid_metric with it."
        )
    if config["cold_start"]:
        hold_out_items(dataset, config["cold_start"], config["seed"])
    return dataset


def _check_longest(config: DataSettings, dataset: Any) -> None:
    longest = dataset.inter_feat[dataset.uid_field].value_counts().max()
    if longest < 3:
        raise DataError(
            f"{config['dataset_label']}: no user has 3 interactions after the filters (one to "
            "start from, one to train on, one to test); loosen them or give more data."
        )
