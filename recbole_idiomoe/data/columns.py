"""Checks, before anything is read, that the files have the columns that a run needs.

Every column that a model or a setting needs must be in its file, must be loaded, and must have a
type that the model can use. The rows of all files that RecBole loads are checked as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.atomic_files import AtomicFile
from recbole_idiomoe.data.labels import check_label_column
from recbole_idiomoe.data.location import DataSettings, interaction_files

_FEATURE = ("token", "token_seq")
_NUMERIC = ("float", "float_seq")
_ANY = (*_FEATURE, *_NUMERIC)

Needs = dict[str, tuple[str, ...]]
"""The columns that are needed of a file, and the types that each may have."""


def check_atomic_files(config: DataSettings) -> None:
    """Check headers and rows of the files before RecBole fails on them with a traceback.

    Raises:
        DataError: the message names the file, the column, the row if there is one, and the fix.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    user_id, item_id = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    parts = [_open(config, path) for path in interaction_files(config, folder, name)]
    check_label_column(config, parts)
    tables = [(parts[0], _check_interactions(config, parts))]
    item_needs = _item_needs(config)
    for kind, id_field, needs in (("item", item_id, item_needs), ("user", user_id, {})):
        path = folder / f"{name}.{kind}"
        columns = config["load_col"]
        is_asked = bool(needs or (columns or {}).get(kind))
        if is_asked and not path.exists():
            raise DataError(
                f"Cannot read {path}: No such file or directory; put it there, or take its columns "
                f"out of {' and '.join(_naming(config, kind))}."
            )
        if is_asked or (columns is None and path.exists()):
            file = _open(config, path)
            needs = {id_field: ("token",), **needs}
            loaded = _check_columns(config, file, needs)
            file.check_rows([id_field], None, _numbers(config, file, loaded))
            tables.append((file, [column for column in loaded if column != id_field]))
    _check_distinct(tables)


def _check_interactions(config: DataSettings, parts: Sequence[AtomicFile]) -> list[str]:
    """Check the interaction files, and return the columns that are loaded of each."""
    ids, time = [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]], config["TIME_FIELD"]
    needs: Needs = dict.fromkeys(ids, ("token",))
    is_ready_made = config["benchmark_filename"] is not None
    lists = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    if not is_ready_made or time in parts[0].columns:
        needs[time] = ("float", "token")
    if is_ready_made and lists in parts[0].columns:
        needs[lists] = ("token_seq",)
    for name in config["alias_of_item_id"] or [] if is_ready_made else []:
        if name != lists:
            raise DataError(
                f"{parts[0].path}: alias_of_item_id names {name!r}, but histories are read from "
                f"{lists!r}; rename the column, or set LIST_SUFFIX to what follows "
                f"{config['ITEM_ID_FIELD']!r} in its name."
            )
    needs |= dict.fromkeys(config["threshold"] or {}, ("float",))
    for part in parts:
        optional = {time, lists} - needs.keys() if is_ready_made else set()
        loaded = _check_columns(config, part, needs, optional)
        for name in loaded:
            kinds = part.columns.get(name), parts[0].columns.get(name)
            if kinds[0] != kinds[1]:
                raise DataError(
                    f"{part.path} and {parts[0].path} differ in column {name!r}; give all parts of "
                    "the split the same columns."
                )
        numbers = _numbers(config, part, loaded)
        is_date = part.columns.get(time) == "token"
        number, date = (None, time) if is_date else (time, None)
        part.check_rows(ids, number if time in needs else None, numbers, date)
    return loaded


def _check_columns(
    config: DataSettings,
    file: AtomicFile,
    needs: Needs,
    optional: set[str] | frozenset[str] = frozenset(),
) -> list[str]:
    """Check the columns of ``file`` that are needed or loaded, and return the loaded ones."""
    kind = file.path.suffix[1:]
    given, left_out = (config[name] or {} for name in ("load_col", "unload_col"))
    chosen, hidden = given.get(kind), left_out.get(kind) or []
    if hidden and config["load_col"] is not None and chosen != "*":
        raise DataError(
            f"load_col and unload_col both choose columns of {file.path}; give only one of them."
        )
    everything = config["load_col"] is None or chosen == "*"
    loaded = [name for name in (file.columns if everything else chosen or []) if name not in hidden]
    for name in (*needs, *loaded):
        if name not in file.columns and name not in optional:
            first = [n[:60] if n.isprintable() else f"{n!r:.60}" for n in file.columns][:10]
            more = ", ..." if len(file.columns) > 10 else ""
            raise DataError(
                f"{file.path} has no column {name!r}, only {', '.join(first)}{more}; "
                "fix the settings that name it, or the file."
            )
    for name, kinds in needs.items():
        if name not in loaded:
            missing = [name for name in needs if name not in loaded]
            fix = f"add it to load_col: {{{kind}: [{', '.join([*loaded, *missing])}]}}"
            if name in hidden:
                fix = f"take it out of unload_col: {{{kind}: [{', '.join(hidden)}]}}"
            raise DataError(f"{file.path}: column {name!r} is needed but not loaded; {fix}.")
        if file.columns[name] not in kinds:
            raise DataError(_wrong_type(config, file, name, kinds))
    return [name for name in loaded if name in file.columns]


def _wrong_type(config: DataSettings, file: AtomicFile, name: str, kinds: tuple[str, ...]) -> str:
    found = file.columns[name]
    if kinds == _FEATURE and file.path.suffix == ".item":
        fix = f"name a column of words, or write {name}:token if its values are names"
        if name in _features(config) and found in _NUMERIC:
            fix = f"name it in numerical_features too, or {fix}"
        return f"{file.path}: {config['model']} cannot use {name}:{found} as a feature; {fix}."
    return (
        f"{file.path}: {name}:{found} in the header must be "
        f"{' or '.join(f'{name}:{kind}' for kind in kinds)}; fix the header."
    )


def _item_needs(config: DataSettings) -> Needs:
    """The columns of the ``.item`` file that the text of an item or the model needs."""
    text = config["item_text_fields"] or []
    needs: Needs = dict.fromkeys(text.values() if isinstance(text, dict) else text, _ANY)
    numerical = config["numerical_features"] or []
    for name in _features(config):
        needs[name] = _ANY if name in numerical else _FEATURE
    if "item_attribute" in config.read_by_model:
        needs[config["item_attribute"]] = _FEATURE
    return needs


def _naming(config: DataSettings, kind: str) -> list[str]:
    """The settings that name columns of the ``.item`` or ``.user`` file."""
    named = {
        "load_col": (config["load_col"] or {}).get(kind),
        "item_text_fields": kind == "item" and config["item_text_fields"],
        f"selected_features of {config['model']}": kind == "item" and _features(config),
        f"item_attribute of {config['model']}": "item_attribute" in config.read_by_model,
    }
    return [name for name, columns in named.items() if columns]


def _features(config: DataSettings) -> list[str]:
    reads_features = "selected_features" in config.read_by_model
    return list(config["selected_features"] or []) if reads_features else []


def _numbers(
    config: DataSettings, file: AtomicFile, loaded: Sequence[str]
) -> dict[str, str | None]:
    """The loaded columns of numbers, with the separator of those that hold lists."""
    separators = {"float": None, "float_seq": config["seq_separator"]}
    kinds = {name: file.columns[name] for name in loaded}
    return {name: separators[kind] for name, kind in kinds.items() if kind in _NUMERIC}


def _check_distinct(tables: Sequence[tuple[AtomicFile, Sequence[str]]]) -> None:
    """No column is loaded from two files, of which RecBole would mix up the values."""
    owner: dict[str, Path] = {}
    for file, columns in tables:
        for name in columns:
            if name in owner:
                raise DataError(
                    f"{owner[name]} and {file.path} both have a column {name!r}; name the columns "
                    "to load of each in load_col, or rename one."
                )
            owner[name] = file.path


def _open(config: DataSettings, path: Path) -> AtomicFile:
    return AtomicFile(path, config["field_separator"], config["encoding"])
