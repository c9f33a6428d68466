"""Checks of how a run is evaluated: split, candidates, metrics, cold start and mix.

Each function raises a one-line :class:`SettingError` if its check fails. RecBole would fail after
the first epoch, or measure something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.register import metric_types, metrics_dict
from recbole.utils import EvaluatorType

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.checks import is_positive

_METRICS = {name: cls.__name__ for name, cls in metrics_dict.items()}
_MODE = re.compile(r"full|labeled|(?:uni|pop)[1-9]\d{0,8}")


def check_eval_args(final: Mapping[str, Any]) -> None:
    """The split has a validation and a test part, in the order of time."""
    found = final["eval_args"]
    if not isinstance(found, dict):
        raise SettingError(f"eval_args={found!r} should be a dict, as {{mode: full}}.")
    split, grouping = found.get("split"), found.get("group_by")
    ratios = split.get("RS") if isinstance(split, dict) and len(split) == 1 else None
    if split != {"LS": "valid_and_test"} and not (
        isinstance(ratios, list) and len(ratios) == 3 and all(map(is_positive, ratios))
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
    if unknown := found.keys() - {"split", "order", "group_by", "mode"}:
        raise SettingError(
            f"eval_args has no {min(unknown, key=str)!r}; it has split, order, group_by and mode."
        )
    mode = found.get("mode", "full")
    named = mode if isinstance(mode, dict) else {"valid": mode, "test": mode}
    if not {*named} <= {"valid", "test"} or not all(
        isinstance(kind, str) and _MODE.fullmatch(kind) for kind in named.values()
    ):
        raise SettingError(
            f"mode [{mode}] in eval_args is not supported; it must be full, labeled, uniN or popN "
            "for N drawn candidates, as uni100; or one a split, as {valid: uni100, test: full}."
        )


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
    kinds = {metric_types[str(metric).lower()] for metric in metrics}
    if len(kinds) > 1:
        raise SettingError(
            f"metrics={metrics} can not be used at the same time: AUC, LogLoss, MAE and RMSE "
            "compare scores with labels, the others rank candidates; measure them in two runs."
        )
    _check_candidates(final, metrics, kinds.pop())
    topk = final["topk"]
    cutoffs = [topk] if isinstance(topk, int) else topk
    if not isinstance(cutoffs, list) or not cutoffs or not all(map(_is_cutoff, cutoffs)):
        raise SettingError(f"topk={topk!r} must be a positive whole number, or several as [5, 10].")
    fewest = min((int(kind[3:]) + 1 for kind in _modes(final) if kind[3:].isdigit()), default=None)
    whole = [name for name in metrics if "rec.items" in metrics_dict[name.lower()].metric_need]
    if whole and fewest is not None and fewest < max(cutoffs):
        raise SettingError(
            f"topk={topk}: {', '.join(whole)} need full lists, and eval_args: "
            f"mode={final['eval_args']['mode']} has {fewest} candidates; lower topk."
        )
    measured = {name for metric in metrics for name in _results_of(str(metric).lower(), cutoffs)}
    if str(final["valid_metric"]).lower() not in measured:
        raise SettingError(
            f"valid_metric={final['valid_metric']} is not measured with metrics={metrics} and "
            f"topk={topk}; name one that is."
        )


def _check_candidates(final: Mapping[str, Any], metrics: list[str], kind: EvaluatorType) -> None:
    """The metrics suit the candidates of validation and test."""
    modes = _modes(final)
    if kind is EvaluatorType.VALUE and "full" in modes:
        raise SettingError(
            f"metrics={metrics} compare scores with labels, which eval_args: mode=full does not "
            "have; set mode=labeled or mode=uni100, and mask_seen=False."
        )
    if kind is EvaluatorType.RANKING and "labeled" in modes:
        raise SettingError(
            f"metrics={metrics} rank candidates, which eval_args: mode=labeled does not have; set "
            "mode=full, or take AUC, LogLoss, MAE or RMSE."
        )


def check_mask(final: Any) -> None:
    """``mask_seen`` is set with the full ranking alone; ``final`` may be a config."""
    if final["mask_seen"] and _modes(final) != {"full"}:
        raise SettingError(
            "mask_seen=True needs the full ranking, eval_args: mode=full; the candidates here "
            f"are {final['eval_args']['mode']!r}. Set mask_seen=False to keep them."
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
    _check_full_ranking(start, "set it to 0", final)
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
    _check_full_ranking(mix, "leave it out", final)
    if final["cold_start"]:
        raise SettingError(
            f"{mix}: nobody had the unseen items of a cold start, which counts cannot rank; leave "
            "one of them out."
        )
    if final.get("benchmark_filename"):
        raise SettingError(f"{mix} needs one .inter file; leave it out to keep another split.")


def _results_of(metric: str, cutoffs: list[int]) -> list[str]:
    """RecBole's names of the results of ``metric``: one for each cut-off, or only one."""
    of_lists = {"rec.topk", "rec.items"} & set(metrics_dict[metric].metric_need)
    return [f"{metric}@{cutoff}" for cutoff in cutoffs] if of_lists else [metric]


def _check_full_ranking(what: str, advice: str, final: Mapping[str, Any]) -> None:
    if _modes(final) != {"full"}:
        raise SettingError(
            f"{what} needs the full ranking, eval_args: mode=full; {advice} to keep "
            f"{final['eval_args']['mode']!r}."
        )


def _modes(final: Any) -> set[str]:
    """The candidates of validation and test, as ``eval_args`` name them."""
    mode = final["eval_args"].get("mode", "full")
    return set(mode.values()) if isinstance(mode, dict) else {mode}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _is_cutoff(value: Any) -> bool:
    return isinstance(value, int) and is_positive(value)
