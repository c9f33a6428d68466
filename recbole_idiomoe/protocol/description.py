"""The protocol of a run, as it is printed with every table."""

from __future__ import annotations

from typing import Any

from recbole_idiomoe.config.run_config import RunConfig

FILTERS = (
    "user_inter_num_interval",
    "item_inter_num_interval",
    "val_interval",
    "rm_dup_inter",
    "filter_inter_by_user_or_item",
)


def protocol(config: RunConfig, item_num: int) -> dict[str, Any]:
    """What the metrics of a run depend on besides the model.

    Args:
        config: the config of the run.
        item_num: number of items in the catalogue, without the padding item.
    """
    split, mode = config["eval_args"]["split"], config["eval_args"]["mode"]
    share, epsilon = config["cold_start"], config["cold_start_epsilon"]
    return {
        "split": " ".join(f"{kind} {how}" for kind, how in split.items()),
        "order": config["eval_args"]["order"],
        "group_by": config["eval_args"]["group_by"],
        "candidates": f"all {item_num} items" if set(mode.values()) == {"full"} else mode,
        "mask_seen": config["mask_seen"],
        "cold_start": {"unseen_test_items": share, "epsilon": epsilon} if share else None,
        "max_history": config["MAX_ITEM_LIST_LENGTH"],
        "filters": {name: config[name] for name in FILTERS},
        "metrics": config["metrics"],
        "topk": config["topk"],
        "valid_metric": config["valid_metric"],
        "trained_on": "training interactions only",
    }
