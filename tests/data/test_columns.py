"""Every column that a run needs is there, loaded, and of a type that the model can use."""

from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import find_data, load_dataset

ROWS = [(f"u{u}", f"i{(u + k) % 6}", k) for u in range(4) for k in range(4)]
ALL = {"load_col": None}
ITEMS = "item_id:token\ttitle:token_seq\tprice:float\n" + "".join(
    f"i{n}\tBlue cup {n}\t{n}.5\n" for n in range(6)
)
USERS = "user_id:token\tage:float\n" + "".join(f"u{n}\t{30 + n}\n" for n in range(4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "toy"
    place.mkdir()
    rows = "".join(f"{u}\t{i}\t{t}\t{t % 5}\n" for u, i, t in ROWS)
    header = "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
    (place / "toy.inter").write_text(header + rows)
    return place


def config(folder: Path, model: str = "SASRec", **settings: Any) -> RunConfig:
    given = {"data_path": str(folder.parent), "topk": [1], "valid_metric": "NDCG@1", "gpu_id": ""}
    return RunConfig(model, "toy", settings=given | settings)


def refused(folder: Path, model: str = "SASRec", **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        find_data(config(folder, model, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["item", "user"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("\t30", "\tunknown").replace("0.5", "dear"), "line 2: column"),
        (lambda text: text.replace(":float", ":int"), "in the header"),
        (lambda text: text.replace("2\n", "2\tmore\n").replace("2.5", "2.5\tx"), "fields, but"),
        (lambda text: text.replace("_id", "_name"), "has no column"),
        (lambda text: text.splitlines()[0] + "\n", "has a header but no rows"),
        (lambda text: "", "is empty"),
        (lambda text: text.replace("\ni1\t", "\n\t").replace("\nu1\t", "\n\t"), "is ''"),
    ],
)
def test_all_files_that_are_loaded_are_checked(
    kind: str, change: Any, words: str, folder: Path
) -> None:
    (folder / f"toy.{kind}").write_text(change({"item": ITEMS, "user": USERS}[kind]))
    message = refused(folder, **ALL)
    assert f"toy.{kind}" in message and words in message


@pytest.mark.parametrize("kind", ["item", "user"])
def test_files_in_another_encoding_are_named(kind: str, folder: Path) -> None:
    text = {"item": ITEMS, "user": USERS}[kind] + f"{kind[0]}9\tcafé\t1\n"
    (folder / f"toy.{kind}").write_bytes(text.encode("latin-1"))
    assert f"toy.{kind}" in (message := refused(folder, **ALL)) and "not utf-8" in message


@pytest.mark.parametrize("kind", ["item", "user"])
def test_a_file_that_load_col_names_must_exist(kind: str, folder: Path) -> None:
    columns = {"inter": ["user_id", "item_id", "timestamp"], kind: [f"{kind}_id"]}
    assert f"toy.{kind}: No such file" in refused(folder, load_col=columns)


def test_a_file_that_is_not_loaded_is_not_checked(folder: Path) -> None:
    (folder / "toy.user").write_text("nonsense")
    find_data(config(folder))


@pytest.mark.parametrize("kind", ["item", "user"])
def test_a_column_is_loaded_from_one_file(kind: str, folder: Path) -> None:
    rows = "".join(f"{kind[0]}{n}\t1\n" for n in range(6))
    (folder / f"toy.{kind}").write_text(f"{kind}_id:token\trating:float\n{rows}")
    message = refused(folder, **ALL)
    assert "toy.inter" in message and f"toy.{kind}" in message and "'rating'" in message
    columns = {"inter": ["user_id", "item_id", "timestamp"], kind: "*"}
    find_data(config(folder, load_col=columns))


def test_a_column_that_is_unloaded_is_missed(folder: Path) -> None:
    message = refused(folder, load_col=None, unload_col={"inter": ["timestamp"]})
    assert "'timestamp' is needed but not loaded; take it out of unload_col" in message
    find_data(config(folder, load_col=None, unload_col={"inter": ["rating"]}))


def test_columns_are_chosen_in_one_way(folder: Path) -> None:
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    message = refused(folder, load_col=columns, unload_col={"inter": ["rating"]})
    assert "give only one" in message


def test_a_threshold_needs_its_column(folder: Path) -> None:
    message = refused(folder, threshold={"rating": 3})
    assert "threshold={'rating': 3} needs the column 'rating'" in message
    unloaded = {"load_col": None, "unload_col": {"inter": ["rating"]}}
    message = refused(folder, threshold={"rating": 3}, **unloaded)
    assert "take it out of unload_col" in message
    find_data(config(folder, threshold={"rating": 3}, load_col=None))


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("SASRecF", {"selected_features": ["price"]}),
        ("GRU4RecF", {"selected_features": ["title", "price"]}),
        ("FDSA", {"selected_features": ["price"]}),
        ("S3Rec", {"item_attribute": "price"}),
    ],
)
def test_a_feature_has_a_type_that_the_model_can_use(
    model: str, settings: dict[str, Any], folder: Path
) -> None:
    (folder / "toy.item").write_text(ITEMS)
    message = refused(folder, model, **ALL, **settings)
    assert f"{model} cannot use price:float as a feature" in message
    words = {
        name: [v] if isinstance(v := "title", str) and name == "selected_features" else v
        for name in settings
    }
    find_data(config(folder, model, **ALL, **words))


def test_a_numerical_feature_is_one_that_is_named_so(folder: Path) -> None:
    (folder / "toy.item").write_text(ITEMS)
    settings = ALL | {"selected_features": ["price"], "numerical_features": ["price"]}
    assert "numerical_features" in refused(folder, "SASRecF", **ALL, selected_features=["price"])
    found = config(folder, "SASRecF", **settings)
    assert load_dataset(found).num("price") == 2


def test_columns_of_other_names_are_loaded_unasked(folder: Path) -> None:
    file = folder / "toy.inter"
    named = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    text = file.read_text()
    for old, new in named.items():
        text = text.replace(old, new)
    file.write_text(text)
    fields = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "what", "TIME_FIELD": "when"}
    dataset = load_dataset(config(folder, **fields))
    assert list(dataset.inter_feat) == ["who", "what", "when"]


@pytest.mark.parametrize("kind", ["item", "user"])
@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
def test_what_recbole_leaves_out_is_counted(
    model: str, kind: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"item": ["i0", "i1", "i2", "i3", "i1"], "user": ["u0", "u1", "u2", "u1"]}[kind]
    (folder / f"toy.{kind}").write_text("\n".join([f"{kind}_id:token", *rows]) + "\n")
    dataset = load_dataset(config(folder, model, **ALL))
    gone = {"item": sum(i in ("i4", "i5") for _, i, _ in ROWS), "user": 4}[kind]
    assert dataset.left_out == {
        f"rows of toy.{kind} with a repeated id": 1,
        f"interactions whose {kind} has no row in the .{kind} file": gone,
    }
    assert f"left out: {gone} interactions whose {kind}" in caplog.text
