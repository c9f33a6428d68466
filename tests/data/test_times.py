"""The last interaction is the last by the file's own times, for every model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.times import time_unit
from tests.helpers import write_dataset

MODELS = ["IDIOMoE", "SASRec", "HSTU", "DIEN"]  # one for each class of datasets
NOW = 1_700_000_000


def load(model: str, path: Path, **settings: Any) -> Any:
    given = {"data_path": str(path), "topk": [1], "valid_metric": "NDCG@1", "gpu_id": ""}
    return load_dataset(RunConfig(model, "toy", settings=given | settings))


def write_times(place: Path, kind: str, rows: str) -> None:
    """A file of interactions whose header says that times are of type ``kind``."""
    (place / "toy").mkdir()
    header = f"user_id:token\titem_id:token\ttimestamp:{kind}\n"
    (place / "toy" / "toy.inter").write_text(header + rows)


def sequences(dataset: Any) -> list[list[str]]:
    """For each split, the items of its targets in order."""
    names = dataset.field2id_token["item_id"]
    return [[str(names[i]) for i in split.inter_feat["item_id"]] for split in dataset.build()]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
def test_seconds_apart_is_apart_in_any_unit(per_second: int, model: str, tmp_path: Path) -> None:
    """float32 has steps of 128 s here; the file has the items from last to first."""
    rows = [("u", f"i{k}", (NOW + k) * per_second) for k in reversed(range(6))]
    dataset = load(model, write_dataset(tmp_path / "toy", rows))
    train, *held_out = sequences(dataset)
    assert held_out == [["i4"], ["i5"]]
    assert train[-1] == "i3"


@pytest.mark.parametrize("model", MODELS)
def test_a_split_over_all_users_is_by_exact_times(model: str, tmp_path: Path) -> None:
    rows = [(f"u{k % 2}", f"i{k}", NOW + k) for k in reversed(range(12))]
    path = write_dataset(tmp_path / "toy", rows)
    by_ratio = {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "none"}
    dataset = load(model, path, eval_args=by_ratio)
    train, valid, test = sequences(dataset)
    assert valid + test == ["i8", "i9", "i10", "i11"]
    assert set(train) <= {f"i{k}" for k in range(2, 8)}


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [("u", f"i{k}", NOW) for k in (3, 1, 2, 0, 4)]
    dataset = load("SASRec", write_dataset(tmp_path / "toy", rows))
    assert sequences(dataset) == [["i1", "i2"], ["i0"], ["i4"]]


@pytest.mark.parametrize(
    "dates",
    [
        ["2024-05-30", "2024-05-31", "2024-06-01", "2024-06-02"],
        [f"2024-05-31T18:30:0{k}Z" for k in range(4)],
        [f"2024-05-31T18:30:00.00000000{k}Z" for k in range(4)],
        ["2024-05-31 18:30", "2024-05-31T20:31+02:00", "2024-05-31 18:32:00", "2024-05-31 18:33"],
    ],
)
@pytest.mark.parametrize("model", ["SASRec", "HSTU"])
def test_iso_dates_are_times(dates: list[str], model: str, tmp_path: Path) -> None:
    rows = [f"u\ti{k}\t{date}\n" for k, date in enumerate(dates)]
    write_times(tmp_path, "token", "".join(reversed(rows)))
    dataset = load(model, tmp_path)
    assert sequences(dataset) == [["i1"], ["i2"], ["i3"]]
    assert dataset.time_unit == "dates"


def test_models_are_given_seconds(tmp_path: Path) -> None:
    rows = [("u", f"i{k}", (NOW + 3600 * k) * 1000) for k in range(5)]
    dataset = load("HSTU", write_dataset(tmp_path / "toy", rows))
    test = dataset.build()[2]
    hours = np.diff(test[np.arange(1)]["timestamp_list"][0, :4].numpy())
    assert hours == pytest.approx(3600, abs=128)  # the step of float32
    assert dataset.time_unit == "milliseconds"


@pytest.mark.parametrize("date", ["31.05.2024", "2024-13-01", "2024-05-31T25:00", "yesterday"])
def test_a_date_that_is_none_is_named_with_its_line(date: str, tmp_path: Path) -> None:
    write_times(tmp_path, "token", f"u\ti\t2024-05-31\nu\tj\t{date}\n")
    with pytest.raises(DataError, match=r"toy\.inter, line 3: timestamp is .*, no date such as"):
        load("SASRec", tmp_path)


def test_a_day_that_no_month_has_is_refused_too(tmp_path: Path) -> None:
    write_times(tmp_path, "token", "u\ti\t2024-02-29\nu\tj\t2023-02-29\n")
    with pytest.raises(DataError, match=r"'2023-02-29' in row 2 is no date"):
        load("SASRec", tmp_path)


def test_a_date_under_a_header_of_numbers_says_what_to_write(tmp_path: Path) -> None:
    write_times(tmp_path, "float", "u\ti\t2024-05-31\n")
    with pytest.raises(DataError, match="a date; write :token for :float"):
        load("SASRec", tmp_path)


def test_units_are_told_by_the_usual_time() -> None:
    for unit, per_second in (
        ("seconds", 1),
        ("milliseconds", 1e3),
        ("microseconds", 1e6),
        ("nanoseconds", 1e9),
    ):
        for year in (1980, 2000, 2050):
            assert time_unit(np.array([(year - 1970) * 3.15e7 * per_second])) == (unit, per_second)
    assert time_unit(np.arange(50.0)) == ("seconds", 1)  # places in a history
    assert time_unit(np.zeros(0)) == ("seconds", 1)
