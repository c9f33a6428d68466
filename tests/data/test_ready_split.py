"""Splits that the user has made: every target has the history that the files give it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recbole_idiomoe import api, load
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.ready_split import positions
from recbole_idiomoe.protocol.splits import split_dataset
from tests.helpers import TINY_BACKBONE

Row = tuple[str, list[str], str]
PARTS = ["train", "valid", "test"]
MODELS = ["SASRec", "IDIOMoE", "HSTU", "TransitionCounter"]
SETTINGS: dict[str, Any] = {
    "benchmark_filename": PARTS,
    "topk": [1],
    "valid_metric": "NDCG@1",
    "epochs": 1,
    "gpu_id": "",
    "show_progress": False,
}
IDIOMOE = {"backbone": "untrained", "backbone_args": TINY_BACKBONE}

PREFIXES: list[list[Row]] = [
    [("u1", ["a"], "b"), ("u2", ["b"], "c"), ("u3", ["f"], "a")],
    [("u1", ["a", "b"], "c"), ("u2", ["b", "c"], "d"), ("u3", ["f", "a"], "b")],
    [("u1", ["a", "b", "c"], "d"), ("u2", ["b", "c", "d"], "e"), ("u3", ["f", "a", "b"], "c")],
]
SESSIONS: list[list[Row]] = [
    [("s1", ["a", "b", "c"], "d"), ("s2", ["e", "a"], "b"), ("s2", ["c"], "f")],
    [("s3", ["b", "c"], "d"), ("s1", ["f"], "a")],
    [("s4", ["a", "c", "e"], "b"), ("s1", ["a"], "e"), ("s5", ["d", "d"], "a")],
]


def write(folder: Path, parts: Sequence[list[Row]], with_times: bool = True) -> Path:
    """Files of a split with lists, in a folder; returns the folder's parent."""
    folder.mkdir(parents=True)
    for name, rows in zip(PARTS, parts, strict=True):
        time = "\ttimestamp:float" if with_times else ""
        lines = [f"user_id:token\titem_id_list:token_seq\titem_id:token{time}"]
        for at, (user, history, item) in enumerate(rows):
            end = f"\t{100 * at}" if with_times else ""
            lines.append(f"{user}\t{' '.join(history)}\t{item}{end}")
        (folder / f"{folder.name}.{name}.inter").write_text("\n".join(lines) + "\n")
    return folder.parent


def write_plain(
    folder: Path, parts: Sequence[list[tuple[str, str, int]]], with_times: bool = True
) -> Path:
    """Files of a split without lists."""
    folder.mkdir(parents=True)
    for name, rows in zip(PARTS, parts, strict=True):
        header = "user_id:token\titem_id:token" + "\ttimestamp:float" * with_times
        lines = [f"{u}\t{i}" + f"\t{t}" * with_times for u, i, t in rows]
        (folder / f"{folder.name}.{name}.inter").write_text("\n".join([header, *lines]) + "\n")
    return folder.parent


def read(path: Path, model: str, **settings: Any) -> Any:
    given = SETTINGS | {"data_path": str(path)} | settings
    return load_dataset(RunConfig(model, "toy", settings=given))


def rows_of(split: Any) -> list[Row]:
    """What a model is given: user, history and target, in the names of the files."""
    rows = split[np.arange(len(split))]
    items = split.field2id_token["item_id"]
    users = split.field2id_token["user_id"]
    lengths = rows["item_length"].tolist()
    return [
        (str(users[user]), [str(items[i]) for i in history[:length]], str(items[target]))
        for user, history, length, target in zip(
            rows["user_id"].tolist(),
            rows["item_id_list"].tolist(),
            lengths,
            rows["item_id"].tolist(),
            strict=True,
        )
    ]


def counted(rows: list[Row], longest: int = 50) -> Counter[tuple[str, tuple[str, ...], str]]:
    return Counter((user, tuple(history[-longest:]), item) for user, history, item in rows)


@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
@pytest.mark.parametrize("alias", [None, ["item_id_list"]], ids=["no-alias", "alias"])
@pytest.mark.parametrize("with_times", [True, False], ids=["times", "no-times"])
@pytest.mark.parametrize("parts", [PREFIXES, SESSIONS], ids=["prefixes", "sessions"])
def test_models_are_given_the_items_of_the_files(
    parts: list[list[Row]], with_times: bool, alias: Any, model: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "toy", parts, with_times)
    splits = read(path, model, alias_of_item_id=alias).build()
    for found, expected in zip(splits, parts, strict=True):
        assert counted(rows_of(found)) == counted(expected)


@given(
    parts=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from("xyz"),
                st.lists(st.sampled_from("abcd"), min_size=1, max_size=6),
                st.sampled_from("abcd"),
            ),
            min_size=1,
            max_size=8,
        ),
        min_size=3,
        max_size=3,
    ),
    longest=st.sampled_from([2, 4, 50]),
)
@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None
)
def test_any_rows_keep_their_histories(
    parts: list[list[Row]], longest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "toy", parts)
    ours = read(path, "TransitionCounter", MAX_ITEM_LIST_LENGTH=longest).build()
    stored = read(path, "SASRec", MAX_ITEM_LIST_LENGTH=longest).build()
    for found, recboles, expected in zip(ours, stored, parts, strict=True):
        assert counted(rows_of(found)) == counted(expected, longest)
        assert rows_of(found) == rows_of(recboles)
        known = {
            (user, item)
            for user, history, target in expected
            for item in [*history[-longest:], target]
        }
        users, items = found.known_interactions()
        names = found.field2id_token
        assert {
            (str(names["user_id"][u]), str(names["item_id"][i]))
            for u, i in zip(users, items, strict=True)
        } == known


def test_prefixes_of_one_history_are_stored_once(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "toy", PREFIXES), "IDIOMoE")
    train, *_ = dataset.build()
    assert len(train.history_items) == 12  # three users with four items each
    windows = train.training_windows(50, np.ones(train.item_num, dtype=int), 999)
    names = train.field2id_token["item_id"]
    assert [[str(names[i]) for i in w] for w in windows] == [["a", "b"], ["b", "c"], ["f", "a"]]


def test_cut_prefixes_are_stored_once_too(tmp_path: Path) -> None:
    history = list("abcdefgh")
    rows = [("u", history[max(0, k - 3) : k], history[k]) for k in range(1, 8)]
    dataset = read(write(tmp_path / "toy", [rows[:5], rows[5:6], rows[6:]]), "IDIOMoE")
    train, *_ = dataset.build()
    assert len(train.history_items) == 8
    assert counted(rows_of(train)) == counted(rows[:5])


PLAIN = [
    [("u", "c", 3), ("u", "a", 1), ("u", "b", 2), ("v", "b", 5), ("v", "a", 4)],
    [("u", "d", 9), ("v", "d", 9)],
    [("v", "e", 10), ("u", "e", 11), ("new", "a", 12)],
]


@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
def test_plain_parts_are_one_history_a_user(model: str, tmp_path: Path) -> None:
    dataset = read(write_plain(tmp_path / "toy", PLAIN), model)
    train, valid, test = map(rows_of, dataset.build())
    assert counted(train) == counted([("u", ["a"], "b"), ("u", ["a", "b"], "c"), ("v", ["a"], "b")])
    assert counted(valid) == counted([("u", ["a", "b", "c"], "d"), ("v", ["a", "b"], "d")])
    assert counted(test) == counted([("u", ["a", "b", "c", "d"], "e"), ("v", ["a", "b", "d"], "e")])
    assert dataset.left_out == {"test rows without a history": 1}


def test_without_times_the_order_of_the_files_counts(tmp_path: Path) -> None:
    dataset = read(write_plain(tmp_path / "toy", PLAIN, with_times=False), "SASRec")
    train = rows_of(dataset.build()[0])
    assert counted(train) == counted([("u", ["c"], "a"), ("u", ["c", "a"], "b"), ("v", ["b"], "a")])


def test_a_training_history_never_has_a_later_part(tmp_path: Path) -> None:
    """A validation row that is older than the training rows still comes after them."""
    parts = [[("u", "a", 8), ("u", "b", 9)], [("u", "c", 1)], [("u", "d", 5)]]
    splits = read(write_plain(tmp_path / "toy", parts), "SASRec").build()
    assert [rows_of(split) for split in splits] == [
        [("u", ["a"], "b")],
        [("u", ["a", "b"], "c")],
        [("u", ["a", "b", "c"], "d")],
    ]


@pytest.mark.parametrize("model", MODELS)
def test_a_whole_run_says_what_the_files_gave(model: str, tmp_path: Path) -> None:
    own = IDIOMOE if model == "IDIOMoE" else {}
    place = {"data_path": str(write(tmp_path / "toy", PREFIXES)), "checkpoint_dir": str(tmp_path)}
    (result,) = api.run(model, "toy", settings=SETTINGS | place | own)
    protocol = result["protocol"]
    assert protocol["split"] == "as given by the files train, valid, test"
    assert protocol["rows"] == "3 training, 3 validation, 3 test"
    assert protocol["order"] == "as given by the files"
    assert protocol["filters"] == "none" and protocol["group_by"] is None
    assert protocol["histories"] == "from the lists of the files"
    assert result["interactions"] == 12
    assert len(load(result["folder"]).recommend(["a", "b"], k=3)) == 3


def test_items_of_lists_are_masked_and_the_target_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "toy", SESSIONS)
    config = RunConfig("SASRec", "toy", settings=SETTINGS | {"data_path": str(path)})
    splits = split_dataset(config, load_dataset(config))
    names = splits.dataset.field2id_token["item_id"]
    test = splits.test._dataset
    masked: list[set[str]] = [set() for _ in range(len(test))]
    (_, (rows, items), _, _), *more = list(splits.test)
    assert not more
    for row, item in zip(rows.tolist(), items.tolist(), strict=True):
        masked[row].add(str(names[item]))
    by_user = {row[0]: seen for row, seen in zip(rows_of(test), masked, strict=True)}
    assert by_user["s4"] == {"a", "c", "e"}
    assert by_user["s5"] == {"d"}
    assert by_user["s1"] == {"a", "b", "c", "d", "f"}  # also of the other files


def test_popularity_counts_training_items(tmp_path: Path) -> None:
    path = write(tmp_path / "toy", PREFIXES)
    config = RunConfig("SASRec", "toy", settings=SETTINGS | {"data_path": str(path)})
    splits = split_dataset(config, load_dataset(config))
    names = [str(name) for name in splits.dataset.field2id_token["item_id"]]
    found = dict(zip(names, splits.popularity.tolist(), strict=True))
    assert found == {"[PAD]": 0, "a": 2, "b": 2, "c": 1, "f": 1, "d": 0, "e": 0}


def rename(path: Path, column: str, other: str) -> None:
    """Write ``other`` for ``column`` in the headers of all parts."""
    for part in PARTS:
        file = path / "toy" / f"toy.{part}.inter"
        file.write_text(file.read_text().replace(column, other))


def without(column: str, path: Path) -> None:
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    at = [name.partition(":")[0] for name in lines[0]].index(column)
    path.write_text("".join("\t".join(x[:at] + x[at + 1 :]) + "\n" for x in lines))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"benchmark_filename": ["train", "test"]}, ["three parts", "validated and tested"]),
        (
            {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}},
            ["item_id_list", "load_col"],
        ),
        ({"benchmark_filename": ["train", "valid", "final"]}, ["toy.final.inter"]),
        ({"benchmark_filename": [*PARTS, "test"]}, ["three parts"]),
        ({"cold_start": 0.1}, ["one .inter file"]),
    ],
)
def test_what_cannot_be_used_is_one_line(
    settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "toy", PREFIXES)
    with pytest.raises(IdiomoeError) as caught:
        read(path, "SASRec", **settings)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["item_id_list", "timestamp"])
def test_parts_have_the_same_columns(column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "toy", PREFIXES)
    without(column, path / "toy" / "toy.valid.inter")
    with pytest.raises(IdiomoeError, match=rf"toy\.valid\.inter.*{column}"):
        read(path, "SASRec")


def test_a_list_of_numbers_is_no_history(tmp_path: Path) -> None:
    path = write(tmp_path / "toy", PREFIXES)
    rename(path, "item_id_list:token_seq", "item_id_list:token")
    with pytest.raises(IdiomoeError, match="item_id_list:token in the header must be"):
        read(path, "SASRec")


def test_lists_under_another_name_are_not_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "toy", PREFIXES)
    rename(path, "item_id_list", "item_id_hist")
    settings = {"load_col": None, "alias_of_item_id": ["item_id_hist"]}
    with pytest.raises(IdiomoeError, match=r"'item_id_hist'.*LIST_SUFFIX"):
        read(path, "SASRec", **settings)
    splits = read(path, "SASRec", **settings, LIST_SUFFIX="_hist").build()
    assert len(splits[0]) == len(PREFIXES[0])


def test_entries_that_another_separator_holds_together_are_refused(tmp_path: Path) -> None:
    together = [[(user, [",".join(items)], item) for user, items, item in p] for p in PREFIXES]
    path = write(tmp_path / "toy", together)
    with pytest.raises(IdiomoeError, match=r"'a,b' of a list is no item.*seq_separator to ','"):
        read(path, "SASRec")
    splits = read(path, "SASRec", seq_separator=",").build()
    assert [counted(rows_of(split)) for split in splits] == list(map(counted, PREFIXES))


@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE", "HSTU"])
def test_a_part_without_histories_is_one_line(model: str, tmp_path: Path) -> None:
    path = write_plain(tmp_path / "toy", [[("u", "a", 1), ("v", "b", 2)], *PLAIN[1:]])
    with pytest.raises(IdiomoeError, match="nothing is left for training; its file needs rows"):
        read(path, model)


def test_a_model_that_needs_other_rows_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "toy", PREFIXES)
    with pytest.raises(IdiomoeError, match="DIEN needs columns that a ready-made split"):
        read(path, "DIEN")


def test_a_leaderboard_takes_one_kind_of_split(tmp_path: Path) -> None:
    plain = [row for part in PLAIN for row in part]
    write_plain(tmp_path / "toy", PLAIN)
    lines = "".join(f"{u}\t{i}\t{t}\n" for u, i, t in plain)
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (tmp_path / "toy" / "toy.inter").write_text(header + lines)
    board = tmp_path / "board"
    settings = SETTINGS | {"data_path": str(tmp_path)}
    api.run("Popularity", "toy", settings=settings, leaderboard=board)
    one_file = {k: v for k, v in settings.items() if k != "benchmark_filename"}
    with pytest.raises(IdiomoeError, match="another protocol"):
        api.run("TransitionCounter", "toy", settings=one_file, leaderboard=board)


def test_places_count_from_the_start_of_each_group() -> None:
    assert positions(np.array([4, 4, 4, 7, 9, 9])).tolist() == [0, 1, 2, 0, 0, 1]
    assert positions(np.zeros(0, dtype=int)).tolist() == []
