"""Where data sets are found, and what is said of files that RecBole cannot read."""

import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import pytest
from recbole.utils import url as recbole_url

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.columns import check_atomic_files
from recbole_idiomoe.data.location import locate

INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
ITEM = "item_id:token\ttitle:token\tcategories:token_seq\n"


def config(root: Path, dataset: str = "amazon-toys", **settings: Any) -> RunConfig:
    return RunConfig("SASRec", dataset, settings={"data_path": str(root), **settings})


def make(
    root: Path,
    name: str = "amazon-toys",
    inter: str | bytes = INTER + "u\ti\t1\n",
    item: str | bytes | None = ITEM + "i\tA doll\ttoys|dolls\n",
) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for suffix, content in (("inter", inter), ("item", item)):
        if content is not None:
            raw = content.encode() if isinstance(content, str) else content
            (folder / f"{name}.{suffix}").write_bytes(raw)
    return folder


# Location


@pytest.mark.parametrize("name", ["amazon-toys", "amazon-toys-games"])
def test_a_local_folder_is_taken_under_our_name_or_recboles(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path, name)
    found = config(tmp_path)
    locate(found)
    assert (found["dataset"], found["data_path"]) == (name, str(folder))
    assert found["dataset_label"] == "amazon-toys"
    locate(found)
    assert found["data_path"] == str(folder)


def test_our_name_wins_where_both_are_there(tmp_path: Path) -> None:
    make(tmp_path, "amazon-toys-games")
    folder = make(tmp_path, "amazon-toys")
    found = config(tmp_path)
    locate(found)
    assert found["data_path"] == str(folder)


def test_ml_100k_comes_with_recbole_unless_there_is_a_copy(tmp_path: Path) -> None:
    found = config(tmp_path, "ml-100k")
    locate(found)
    assert (Path(found["data_path"]) / "ml-100k.inter").is_file()
    check_atomic_files(found)
    folder = make(tmp_path, "ml-100k")
    found = config(tmp_path, "ml-100k")
    locate(found)
    assert found["data_path"] == str(folder)


def test_a_ready_made_split_is_found(tmp_path: Path) -> None:
    folder = make(tmp_path, "mine", item=None)
    for part in ("train", "valid", "test"):
        (folder / f"mine.{part}.inter").write_text(INTER + "u\ti\t1\n")
    (folder / "mine.inter").unlink()
    load_col = {"inter": ["user_id", "item_id", "timestamp"]}
    parts = ["train", "valid", "test"]
    found = config(tmp_path, "mine", benchmark_filename=parts, load_col=load_col)
    locate(found)
    check_atomic_files(found)
    (folder / "mine.valid.inter").write_text(INTER)
    with pytest.raises(DataError, match=r"mine\.valid\.inter has a header but no rows"):
        check_atomic_files(found)


def said(call: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_name_is_told_from_the_nearest(tmp_path: Path) -> None:
    message = said(locate, config(tmp_path, "amazon-toy"))
    assert "did you mean 'amazon-toys'" in message and str(tmp_path / "amazon-toy") in message


def test_a_folder_without_the_file_is_not_downloaded_over(tmp_path: Path) -> None:
    (tmp_path / "amazon-toys").mkdir()
    assert "holds no amazon-toys.inter" in said(locate, config(tmp_path))


@pytest.mark.parametrize("name", ["amazon-toys", "mine", "ml-100k"])
def test_the_data_sets_own_folder_is_not_the_one_above_it(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path, name)
    message = said(locate, config(folder, name))
    assert f"--data_path={folder} holds the files of {name} itself" in message
    assert "name the folder above it" in message
    flat = folder.rename(tmp_path / "flat")
    assert f"move its files into {flat / name}" in said(locate, config(flat, name))


# Download


def archive(path: Path, *names: str) -> str:
    with zipfile.ZipFile(path / "Toys.zip", "w") as file:
        for name in names:
            file.writestr(name, INTER + "u\ti\t1\n")
    return str(path / "Toys.zip")


def test_a_download_ends_in_a_folder_under_recboles_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archive(tmp_path, "Toys.inter", "Toys.item")
    monkeypatch.setattr(recbole_url, "decide_download", lambda url: True)
    monkeypatch.setattr(recbole_url, "download_url", lambda url, folder: made)
    root = tmp_path / "data"
    found = config(root)
    locate(found)
    assert found["data_path"] == str(root / "amazon-toys-games")
    assert [p.name for p in root.iterdir()] == ["amazon-toys-games"]
    assert sorted(p.name for p in (root / "amazon-toys-games").iterdir()) == [
        "amazon-toys-games.inter",
        "amazon-toys-games.item",
    ]


def refuse(url: str) -> bool:
    raise urllib.error.HTTPError(url, 403, "Access Denied", {}, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["denied", "declined", "no zip", "other files", "cut off"])
def test_a_failed_download_is_one_line_and_leaves_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archive(tmp_path, "readme.txt")
    if fault == "no zip":
        Path(made).write_bytes(b"<html>Access Denied</html>")

    def download(url: str, folder: str) -> str:
        (Path(folder) / "Toys.zip").write_bytes(b"half")
        if fault == "cut off":
            raise RuntimeError("Stopped downloading due to\ninterruption.")
        return made

    decide = refuse if fault == "denied" else lambda url: fault != "declined"
    monkeypatch.setattr(recbole_url, "decide_download", decide)
    monkeypatch.setattr(recbole_url, "download_url", download)
    root = tmp_path / "new" / "data"
    message = said(locate, config(root, dumps=None))
    assert "amazon-toys-games" in message and "--data_path" in message
    assert f"amazon-toys.inter and amazon-toys.item into {root}" in message
    assert not root.parent.exists()
    root.mkdir(parents=True)
    said(locate, config(root, dumps=None))
    assert list(root.iterdir()) == []


# Files


def checked(root: Path, **settings: Any) -> str:
    found = config(root, **settings)
    locate(found)
    return said(check_atomic_files, found)


def test_good_files_pass(tmp_path: Path) -> None:
    title = 'i\t"Quoted, once\t\n'
    make(tmp_path, inter=(INTER + "u\ti\t1\n\n").replace("\n", "\r\n"), item=ITEM + title)
    found = config(tmp_path)
    locate(found)
    check_atomic_files(found)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"item": None}, ["amazon-toys.item", "No such file"]),
        ({"inter": b""}, ["amazon-toys.inter is empty"]),
        ({"inter": INTER}, ["header but no rows"]),
        ({"inter": INTER + "u\ti\n"}, ["line 2", "2 fields", "names 3"]),
        ({"inter": INTER + "u\ti\t1\nu\ti\t2\tx\n"}, ["line 3", "4 fields"]),
        ({"inter": INTER + "u\ti\tMonday\n"}, ["line 2", "timestamp is 'Monday'"]),
        ({"inter": INTER + "u\ti\t\n"}, ["line 2", "timestamp is ''"]),
        ({"inter": INTER.encode() + b"u\ti\t1\nu\t\xff\t1\n"}, ["line 3", "not utf-8"]),
        ({"inter": b"\xef\xbb\xbf" + INTER.encode() + b"u\ti\t1\n"}, ["byte-order mark"]),
        ({"inter": INTER.replace("\t", ",") + "u,i,1\n"}, ["in the header", "separated by '\\t'"]),
        ({"inter": INTER.replace("float", "int")}, ["'timestamp:int' in the header"]),
        ({"inter": INTER.replace("user_id", "item_id")}, ["'item_id' is there twice"]),
        ({"inter": INTER.replace("timestamp", "time")}, ["no column 'timestamp'", "time;"]),
        ({"item": ITEM.replace("title", "name")}, ["amazon-toys.item has no column 'title'"]),
        ({"item": ITEM + "i\ttoo few\n"}, ["amazon-toys.item, line 2"]),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    files: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    make(tmp_path, **files)
    message = checked(tmp_path)
    assert all(word in message for word in words), message


def test_columns_that_settings_name_must_exist_and_be_loaded(tmp_path: Path) -> None:
    make(tmp_path)
    assert "no column 'brand'" in checked(tmp_path, item_text_fields=["title", "brand"])
    load_col = {"inter": ["user_id", "item_id"], "item": ["item_id"]}
    message = checked(tmp_path, load_col=load_col)
    assert "load_col: {inter: [user_id, item_id, timestamp]}" in message
    load_col["inter"].append("timestamp")
    assert "load_col: {item: [item_id, title, categories]}" in checked(tmp_path, load_col=load_col)


def test_features_are_asked_for_by_the_models_that_read_them(tmp_path: Path) -> None:
    make(tmp_path)
    settings = {"data_path": str(tmp_path), "selected_features": ["colour"]}
    check_atomic_files(located(RunConfig("SASRec", "amazon-toys", settings=settings)))
    message = said(check_atomic_files, located(RunConfig("FDSA", "amazon-toys", settings=settings)))
    assert "no column 'colour'" in message


def located(found: RunConfig) -> RunConfig:
    locate(found)
    return found


def test_another_encoding_can_be_named(tmp_path: Path) -> None:
    make(tmp_path, item=ITEM.encode() + "i\tcafé\t\n".encode("latin-1"))
    assert "not utf-8" in checked(tmp_path)
    check_atomic_files(located(config(tmp_path, encoding="latin-1")))
    assert "unknown encoding" in checked(tmp_path, encoding="klingon")
