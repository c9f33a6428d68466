"""Checks of settings that RecBole accepts, or refuses late and unclearly, before anything runs.

Each function raises a one-line :class:`SettingError` if its check fails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.register import metrics_dict

from recbole_idiomoe.base.errors import SettingError, nearest

_AMOUNTS = {"epochs", "pretrain_epochs", "train_batch_size", "eval_batch_size", "save_step"}
_AMOUNTS |= {"MAX_ITEM_LIST_LENGTH", "hidden_size", "n_layers", "n_heads", "inner_size"}
_POSITIVE = _AMOUNTS | {"learning_rate", "temperature"}
_NOT_NEGATIVE = {"weight_decay", "stopping_step", "worker", "seed", "metric_decimal_place"}
_WHOLE = _AMOUNTS | {"stopping_step", "eval_step", "worker", "seed", "metric_decimal_place"}
_TEXT = {"checkpoint_dir", "data_path", "encoding", "field_separator", "seq_separator"}
_TEXT |= {"USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"}
_PICKLED = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
_MAX_SEED = 2**32 - 1  # numpy's
_LARGEST = float(np.finfo(np.float32).max)
_CHOICES = {
    # RecBole trains with Adam, after one line in the log, when it does not know the name.
    "learner": ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "loss_type": ("CE", "BPR"),
    "state": ("debug", "info", "warning", "error", "critical"),
    "rm_dup_inter": ("first", "last", "None"),
}
INTERVALS = ("user_inter_num_interval", "item_inter_num_interval")
_NUMBER = r"\s*[-+]?(?:inf|\d+\.?\d*(?:[eE][-+]?\d+)?)\s*"
_INTERVAL = re.compile(rf"\s*[\[(]({_NUMBER}),({_NUMBER})[\])]\s*")

_METRICS = {name: cls.__name__ for name, cls in metrics_dict.items()}


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
        elif isinstance(default, int | float) and not _is_number(value):
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
        if name == "seed" and value > _MAX_SEED:
            raise SettingError(f"seed={value} must be at most {_MAX_SEED}.")
        if name in _TEXT and (not isinstance(value, str) or not value):
            raise SettingError(f"{name}={value!r} must be text; put it in quotes.")
        if name in _CHOICES and str(value).lower() not in map(str.lower, _CHOICES[name]):
            raise SettingError(f"{name}={value!r} is not one of {', '.join(_CHOICES[name])}.")


def check_forms(final: Mapping[str, Any]) -> None:
    """Intervals, ``load_col``, ``clip_grad_norm`` and ``benchmark_filename`` are well-formed."""
    for name in INTERVALS:
        _check_interval(name, final.get(name))
    values = final.get("val_interval")
    if values is not None and not isinstance(values, dict):
        raise SettingError(
            f"val_interval={values!r} must be null or an interval a column, as "
            '{timestamp: "[0,inf)"}.'
        )
    for column, interval in (values or {}).items():
        _check_interval(f"val_interval: {column}", interval)
    columns = final.get("load_col")
    if columns is not None and not (
        isinstance(columns, dict)
        and all(part in ("*", None) or _is_texts(part) for part in columns.values())
    ):
        raise SettingError(
            f"load_col={str(columns)[:200]} must be null or a list of columns a file, as "
            "{inter: [user_id, item_id, timestamp], item: [item_id]}."
        )
    clip = final.get("clip_grad_norm")
    if clip is not None and not (
        isinstance(clip, dict)
        and {"max_norm"} <= clip.keys() <= {"max_norm", "norm_type"}
        and all(_is_positive(number) for number in clip.values())
    ):
        raise SettingError(f"clip_grad_norm={clip!r} must be null or as {{max_norm: 1.0}}.")
    parts = final.get("benchmark_filename")
    if parts is not None and (not _is_texts(parts) or len(set(parts)) != 3):
        raise SettingError(
            f"benchmark_filename={parts!r} must be null or three parts, as [train, valid, test]: "
            "models are both validated and tested."
        )


def check_eval_args(final: Mapping[str, Any]) -> None:
    """The split has a validation and a test part, in the order of time."""
    found = final["eval_args"]
    if not isinstance(found, dict):
        raise SettingError(f"eval_args={found!r} should be a dict, as {{mode: full}}.")
    split, grouping = found.get("split"), found.get("group_by")
    ratios = split.get("RS") if isinstance(split, dict) and len(split) == 1 else None
    if split != {"LS": "valid_and_test"} and not (
        isinstance(ratios, list) and len(ratios) == 3 and all(map(_is_positive, ratios))
    ):
        raise SettingError(
            f"eval_args: split={split!r} must be {{LS: valid_and_test}}, or {{RS: [8, 1, 1]}} with "
            "positive numbers: models are both validated and tested."
        )
    if found.get("order") != "TO":
        raise SettingError(
            f"eval_args: order={found.get('order')!r} must be TO, the order of time, for "
            "sequential models."
        )
    if grouping not in ("user", "none", None):
        raise SettingError(f"eval_args: group_by={grouping!r} must be user or none.")


def check_metrics(final: Mapping[str, Any]) -> None:
    """``metrics`` and ``topk`` are valid, and ``valid_metric`` is one of the metrics measured.

    Otherwise RecBole fails after the first epoch.
    """
    metrics = _as_list(final["metrics"])
    if not isinstance(metrics, list) or not metrics:
        raise SettingError(f"metrics={metrics!r} must name at least one metric, as [Hit, NDCG].")
    for metric in metrics:
        if str(metric).lower() not in _METRICS:
            known = ", ".join(_METRICS.values())
            raise SettingError(
                f"metrics: {metric!r} is not one of {known}; write several as [Hit, NDCG]."
            )
    topk = final["topk"]
    cutoffs = [topk] if isinstance(topk, int) else topk
    if not isinstance(cutoffs, list) or not cutoffs or not all(map(_is_cutoff, cutoffs)):
        raise SettingError(f"topk={topk!r} must be a positive whole number, or several as [5, 10].")
    measured = {name for metric in metrics for name in _results_of(str(metric).lower(), cutoffs)}
    if str(final["valid_metric"]).lower() not in measured:
        raise SettingError(
            f"valid_metric={final['valid_metric']} is not measured with metrics={metrics} and "
            f"topk={topk}; name one that is."
        )


def check_cold_start(final: Mapping[str, Any]) -> None:
    """A cold start is run with leave-one-out, the full ranking and metrics of ranked lists."""
    if not final["cold_start"]:
        return
    start, found = f"cold_start={final['cold_start']}", final["eval_args"]
    if found["split"] != {"LS": "valid_and_test"} or final.get("benchmark_filename"):
        raise SettingError(
            f"{start} needs one .inter file and eval_args: split={{LS: valid_and_test}}; set it to "
            "0 to keep another split."
        )
    _check_full_ranking(start, "set it to 0", found["mode"])
    for metric in _as_list(final["metrics"]):
        if not issubclass(metrics_dict[metric.lower()], TopkMetric):
            raise SettingError(
                f"metrics: {metric} is not of a ranked list's top K, which {start} needs; take "
                "Hit, NDCG or MRR."
            )


def check_mix(final: Mapping[str, Any]) -> None:
    """A mix is run with one ``.inter`` file, the full ranking and without a cold start."""
    if not final["mix"]:
        return
    mix = f"mix={final['mix']}"
    _check_full_ranking(mix, "leave it out", final["eval_args"]["mode"])
    if final["cold_start"]:
        raise SettingError(
            f"{mix}: nobody had the unseen items of a cold start, which counts cannot rank; leave "
            "one of them out."
        )
    if final.get("benchmark_filename"):
        raise SettingError(f"{mix} needs one .inter file; leave it out to keep another split.")


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


def _results_of(metric: str, cutoffs: list[int]) -> list[str]:
    """RecBole's names of the results of ``metric``: one for each cut-off, or only one."""
    of_lists = {"rec.topk", "rec.items"} & set(metrics_dict[metric].metric_need)
    return [f"{metric}@{cutoff}" for cutoff in cutoffs] if of_lists else [metric]


def _check_full_ranking(what: str, advice: str, mode: Any) -> None:
    if set(mode.values() if isinstance(mode, dict) else [mode]) != {"full"}:
        raise SettingError(
            f"{what} needs the full ranking, eval_args: mode=full; {advice} to keep {mode!r}."
        )


def _check_interval(name: str, value: Any) -> None:
    if value is None:
        return
    for interval in str(value).split(";"):
        ends = _INTERVAL.fullmatch(interval)
        if not ends or float(ends[1]) > float(ends[2]):
            raise SettingError(
                f"{name}={value!r} is no interval; write it as '[5,inf)', the lower end first."
            )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_cutoff(value: Any) -> bool:
    return isinstance(value, int) and _is_positive(value)
