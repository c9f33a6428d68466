"""What a data set may come to, whatever its files hold: a right reading, or one line."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.atomic_files import MISSING
from recbole_idiomoe.data.catalog import Catalog, read_catalog
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.options import TextOptions
from tests.helpers import DATASET_SETTINGS

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
HEADER, ITEM_HEADER = (
    "user_id:token\titem_id:token\ttimestamp:float",
    "item_id:token\ttitle:token\tcategories:token_seq",
)
# Of a data set as a whole: which row is at fault cannot be said.
OF_THE_WHOLE = ("no user has 3 interactions", "nothing is left after the filters", "topk=[1]")


class Read(NamedTuple):
    """A data set as it was read, and its test split."""

    dataset: Any
    test: Any
    rows: list[tuple[str, str, float]]
    catalog: Catalog


def read(inter: bytes, item: bytes | None = None, model: str = "IDIOMoE") -> Read | str:
    """The data set of two files' contents, or the line that refuses it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "toy"
        folder.mkdir()
        (folder / "toy.inter").write_bytes(inter)
        given = DATASET_SETTINGS | {"data_path": place, "topk": [1], "valid_metric": "NDCG@1"}
        if item is None:
            given["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
            given["item_text_fields"] = None
        else:
            (folder / "toy.item").write_bytes(item)
        config = RunConfig(model, "toy", settings=given)
        try:
            dataset = load_dataset(config)
            rows = rows_of(dataset)
            train, _, test = dataset.build()
            return Read(dataset, test, rows, read_catalog(train, TextOptions.from_mapping(config)))
        except IdiomoeError as error:
            said = str(error)
            assert len(said.splitlines()) == 1 and len(said) < 1000, said
            assert "toy" in said
            return said


def rows_of(dataset: Any) -> list[tuple[str, str, float]]:
    """The interactions of a loaded data set, by the names and with the times of the file."""
    table = dataset.inter_feat
    per_second = {"seconds": 1, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
    times = table["timestamp"] * per_second[dataset.time_unit]
    users, items = (
        dataset.field2id_token[name][table[name].to_numpy()].tolist()
        for name in ("user_id", "item_id")
    )
    return list(zip(users, items, times.tolist(), strict=True))


def in_order(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Rows of a file, each user's together and in the order of time, in which ties stay."""
    users = list(dict.fromkeys(user for user, *_ in rows))
    return sorted(rows, key=lambda row: (users.index(row[0]), float(row[2])))


def check_histories(found: Read) -> None:
    """Every test row is the last of its user in the order of time, in which ties stay in order."""
    by_user: dict[str, list[tuple[float, str]]] = {}
    for user, item, when in found.rows:
        by_user.setdefault(user, []).append((when, item))
    batch = found.test[np.arange(len(found.test))]
    names = {name: found.dataset.field2id_token[name] for name in ("user_id", "item_id")}
    tested = []
    rows = zip(*(batch[f].tolist() for f in ("user_id", "item_id", "item_id_list")), strict=True)
    for user, target, history in rows:
        expected = [item for _, item in sorted(by_user[names["user_id"][user]], key=lambda x: x[0])]
        assert names["item_id"][target] == expected[-1]
        assert [names["item_id"][i] for i in history if i] == expected[:-1][-50:]
        tested.append(user)
    assert len(tested) == len(set(tested)) == sum(len(rows) > 2 for rows in by_user.values())


def first_fault(text: str, number: str | None) -> int | None:
    """The first line of an atomic file that no reading can make sense of; None if there is none."""
    header, *lines = text.split("\n")
    names = [column.split(":")[0] for column in header.split("\t")]
    for at, line in enumerate(lines, start=2):
        fields = line.split("\t")
        if line and (len(fields) != len(names) or "\0" in line or _is_bad(names, fields, number)):
            return at
    return None


def _is_bad(names: list[str], fields: list[str], number: str | None) -> bool:
    if any(fields[i] in MISSING for i, name in enumerate(names) if name.endswith("_id")):
        return True
    if number is None:
        return False
    value = fields[names.index(number)]
    return not NUMBER.fullmatch(value) or abs(float(value)) > float(np.finfo(np.float32).max)
