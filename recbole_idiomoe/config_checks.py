"""What RecBole lets pass, or stops at late and unclearly, checked before anything runs.

Each function raises a one-line :class:`SettingError`, or returns.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from recbole.evaluator.register import metrics_dict

from recbole_idiomoe.errors import SettingError

_POSITIVE = (
    "epochs",
    "learning_rate",
    "train_batch_size",
    "eval_batch_size",
    "MAX_ITEM_LIST_LENGTH",
    "pretrain_epochs",
    "save_step",
)
_CHOICES = {
    # RecBole trains with Adam, after one line in the log, when it does not know the name.
    "learner": ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "loss_type": ("CE", "BPR"),
    "state": ("debug", "info", "warning", "error", "critical"),
}


def check_names(given: Collection[str], known: Collection[str], model: str) -> None:
    """Every key in ``given`` is in ``known``: RecBole takes any, and a misspelt one has no effect.

    Raises:
        SettingError: it is not; the message names the nearest key.
    """
    lowered = {name.lower(): name for name in known}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name.lower().replace("-", "_"), lowered, n=1)
            mend = (
                f"did you mean {lowered[near[0]]!r}?"
                if near
                else f"neither RecBole, {model} nor this package reads it."
            )
            raise SettingError(f"unknown setting {name!r}; {mend}")


def check_values(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """RecBole's settings in ``given`` are of their default's type, and in range.

    Raises:
        SettingError: one is not.
    """
    for name, value in given.items():
        default = defaults.get(name)
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise SettingError(f"{name}={value!r} must be True or False.")
        elif isinstance(default, int | float) and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise SettingError(f"{name}={value!r} must be a number, as {default}.")
        if name in _POSITIVE and not value > 0:
            raise SettingError(f"{name}={value!r} must be above 0.")
        if name in _CHOICES and str(value).lower() not in map(str.lower, _CHOICES[name]):
            raise SettingError(f"{name}={value!r} is not one of {', '.join(_CHOICES[name])}.")


def check_metrics(final: Mapping[str, Any]) -> None:
    """``metrics``, ``topk`` and ``valid_metric`` agree: RecBole fails after the first epoch.

    Raises:
        SettingError: an unknown metric, a cut-off that is no positive whole number, or a
            ``valid_metric`` that is not among what is measured.
    """
    metrics = final["metrics"]
    metrics = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(metrics, list) or not metrics:
        raise SettingError(f"metrics={metrics!r} must name at least one metric, as [Hit, NDCG].")
    names = {cls.__name__.lower(): cls.__name__ for cls in metrics_dict.values()}
    for metric in metrics:
        if str(metric).lower() not in names:
            raise SettingError(f"metrics: {metric!r} is not one of {', '.join(names.values())}.")
    topk = final["topk"]
    cutoffs = [topk] if isinstance(topk, int) else topk
    if not isinstance(cutoffs, list) or not cutoffs or not all(map(_is_cutoff, cutoffs)):
        raise SettingError(f"topk={topk!r} must be a positive whole number or a list of such.")
    name, at, cutoff = str(final["valid_metric"]).partition("@")
    measured = name.lower() in [str(metric).lower() for metric in metrics]
    if not measured or (at and cutoff not in map(str, cutoffs)):
        raise SettingError(
            f"valid_metric={final['valid_metric']} is not measured with metrics={metrics} and "
            f"topk={topk}; name one that is."
        )


def _is_cutoff(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
