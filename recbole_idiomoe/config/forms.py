"""Checks of settings of RecBole's that are lists and mappings, and of settings that go together.

Each function raises a one-line :class:`SettingError` if its check fails. RecBole would end in a
traceback, some of them after the first epoch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.checks import is_number, is_positive

INTERVALS = ("user_inter_num_interval", "item_inter_num_interval")
_KG_INTERVALS = ("entity_kg_num_interval", "relation_kg_num_interval")
_NUMBER = r"\s*[-+]?(?:inf|\d+\.?\d*(?:[eE][-+]?\d+)?)\s*"
_INTERVAL = re.compile(rf"\s*[\[(]({_NUMBER}),({_NUMBER})[\])]\s*")
_COLUMNS = ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")


class Form(NamedTuple):
    """What a setting may be besides null."""

    holds: Callable[[Any], bool]
    wanted: str


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _is_mapping_to(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def found(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(key, str) and holds(part) for key, part in value.items()
        )

    return found


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_clip(value: Any) -> bool:
    names = {"max_norm"}
    is_dict = isinstance(value, dict) and names <= value.keys() <= names | {"norm_type"}
    return is_dict and all(map(is_positive, value.values()))


_TEXTS = Form(_is_texts, "a list of texts, as [one, two]")
_FILE_COLUMNS = Form(_is_mapping_to(_is_texts), "a list of columns a file, as {inter: [rating]}")
_SHARE = Form(_is_share, "a number between 0 and 1")
_FORMS = {
    "load_col": Form(
        _is_mapping_to(lambda part: part == "*" or _is_texts(part)),
        "a list of columns a file, as {inter: [user_id, item_id, timestamp], item: [item_id]}",
    ),
    "unload_col": _FILE_COLUMNS,
    "unused_col": _FILE_COLUMNS,
    "clip_grad_norm": Form(_is_clip, "as {max_norm: 1.0}"),
    "threshold": Form(
        lambda value: _is_mapping_to(is_number)(value) and len(value) == 1,
        "the number from which on a column means label 1, as {rating: 3}",
    ),
    "benchmark_filename": Form(
        lambda value: _is_texts(value) and len(value) == len(set(value)) == 3,
        "three parts, as [train, valid, test]: models are both validated and tested",
    ),
    "seq_len": Form(
        _is_mapping_to(lambda part: isinstance(part, int) and is_positive(part)),
        "the longest list a column, as {title: 20}",
    ),
    "preload_weight": Form(
        _is_mapping_to(lambda part: isinstance(part, str)),
        "the column of vectors of a column of ids, as {ent_id: ent_vec}",
    ),
    "discretization": Form(
        _is_mapping_to(lambda part: isinstance(part, dict)),
        "a method a column, as {price: {method: ED, bucket: 10}}",
    ),
    "additional_feat_suffix": Form(
        lambda value: isinstance(value, str) or _is_texts(value), "a list of files' endings"
    ),
    "selected_features": Form(lambda value: _is_texts(value) and value != [], "a list of columns"),
    "normalize_all": Form(lambda value: isinstance(value, bool), "True or False"),
    "tail_ratio": Form(is_positive, "a number above 0"),
    **dict.fromkeys(("ft_ratio", "mask_ratio", "eta", "beta"), _SHARE),
    **dict.fromkeys(("numerical_features", "normalize_field"), _TEXTS),
    **{f"alias_of_{kind}_id": _TEXTS for kind in ("user", "item", "entity", "relation")},
}
_DRAWN: dict[str, Form] = {
    "distribution": Form(lambda value: value in ("uniform", "popularity"), "uniform or popularity"),
    "sample_num": Form(
        lambda value: isinstance(value, int) and is_positive(value), "a positive whole number"
    ),
    "alpha": Form(is_number, "a number"),
    "dynamic": Form(lambda value: isinstance(value, bool), "True or False"),
    "candidate_num": Form(
        lambda value: isinstance(value, int) and is_number(value) and value >= 0, "a whole number"
    ),
}
_TRANSFORMS = {
    "inverse_itemseq": None,
    "mask_itemseq": "mask_ratio",
    "crop_itemseq": "eta",
    "reorder_itemseq": "beta",
}
"""RecBole's transforms, each with the setting that it needs."""


def check_forms(final: Mapping[str, Any]) -> None:
    """Settings of RecBole's that are null, lists or mappings are well-formed."""
    for name, form in _FORMS.items():
        value = final.get(name)
        if value is not None and not form.holds(value):
            raise SettingError(f"{name}={str(value)[:200]} must be null or {form.wanted}.")
    for name in (*INTERVALS, *_KG_INTERVALS):
        _check_interval(name, final.get(name))
    values = final.get("val_interval")
    if values is not None and not isinstance(values, dict):
        raise SettingError(
            f"val_interval={values!r} must be null or an interval a column, as "
            '{timestamp: "[0,inf)"}.'
        )
    for column, interval in (values or {}).items():
        if interval is None:
            raise SettingError(f"val_interval: {column} has no interval; write it as '[5,inf)'.")
        _check_interval(f"val_interval: {column}", interval)


def check_columns(final: Mapping[str, Any]) -> None:
    """Columns that are read have names of their own, and none of them is used up."""
    names = [*_COLUMNS, "LABEL_FIELD", "ITEM_LIST_LENGTH_FIELD"]
    named = {name: final[name] for name in names}
    named["ITEM_ID_FIELD + LIST_SUFFIX"] = final["ITEM_ID_FIELD"] + final["LIST_SUFFIX"]
    for name, column in named.items():
        other = next(known for known, found in named.items() if found == column)
        if other != name:
            raise SettingError(f"{name} and {other} are both {column!r}; give each its own name.")
    needed = {final[name]: name for name in _COLUMNS}
    for column in final.get("threshold") or {}:
        if column in needed:
            raise SettingError(
                f"threshold={final['threshold']} uses up {column!r}, which is {needed[column]}; "
                "make labels of another column."
            )
    if final["TIME_FIELD"] in (final.get("numerical_features") or []):
        raise SettingError(
            f"numerical_features: {final['TIME_FIELD']!r} is TIME_FIELD, which orders the rows; "
            "leave it out, or give a copy of the column."
        )
    for column in (final.get("unused_col") or {}).get("inter", []):
        if column in needed and needed[column] != "TIME_FIELD":
            raise SettingError(
                f"unused_col: {column!r} is {needed[column]}, which every model needs; leave it "
                "out."
            )


def check_transform(final: Mapping[str, Any], default: str | None) -> None:
    """RecBole knows the ``transform``, and has what it needs; a model's own one is kept.

    Args:
        final: the settings.
        default: the transform that the model itself has.
    """
    name = final.get("transform")
    if default is not None and name != default:
        raise SettingError(f"transform={name!r}: {default} is a part of this model; leave it out.")
    if name is None:
        return
    if name not in _TRANSFORMS:
        raise SettingError(f"transform={name!r} must be null or one of {', '.join(_TRANSFORMS)}.")
    needed = _TRANSFORMS[name]
    if needed and final.get(needed) is None:
        raise SettingError(f"transform={name} needs {needed}, a number between 0 and 1; give it.")
    longest = final["MAX_ITEM_LIST_LENGTH"]
    if needed == "mask_ratio" and int(final["mask_ratio"] * longest) < 1:
        raise SettingError(
            f"mask_ratio={final['mask_ratio']} masks none of MAX_ITEM_LIST_LENGTH={longest} items; "
            "raise it."
        )


def check_negatives(final: Mapping[str, Any], needed: bool) -> None:
    """``train_neg_sample_args`` say how items are drawn, at least where the model needs them.

    Args:
        final: the settings.
        needed: whether the model learns from drawn items.
    """
    drawn = final.get("train_neg_sample_args")
    if drawn in (None, "None") or (isinstance(drawn, dict) and drawn.get("distribution") == "none"):
        if needed:
            raise SettingError(
                f"train_neg_sample_args={drawn!r}: {final.get('loss_type') or 'this model'} learns "
                "from drawn items; leave it out, or give {distribution: uniform, sample_num: 1}."
            )
        return
    if not isinstance(drawn, dict):
        raise SettingError(
            f"train_neg_sample_args={drawn!r} must be null or as {{distribution: uniform, "
            "sample_num: 1}."
        )
    for name, value in drawn.items():
        if name not in _DRAWN:
            raise SettingError(
                f"train_neg_sample_args has no {name!r}; it has {', '.join(_DRAWN)}."
            )
        if not _DRAWN[name].holds(value):
            raise SettingError(
                f"train_neg_sample_args: {name}={value!r} must be {_DRAWN[name].wanted}."
            )
    if drawn.get("dynamic") and not drawn.get("candidate_num"):
        raise SettingError("train_neg_sample_args: dynamic=True needs candidate_num above 0.")


def _check_interval(name: str, value: Any) -> None:
    if value is None:
        return
    for interval in str(value).split(";"):
        ends = _INTERVAL.fullmatch(interval)
        if not ends or float(ends[1]) > float(ends[2]):
            raise SettingError(
                f"{name}={value!r} is no interval; write it as '[5,inf)', the lower end first."
            )
