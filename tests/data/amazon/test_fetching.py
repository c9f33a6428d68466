"""Downloads from a server that stalls, breaks off and refuses, and names that just work."""

import errno
import hashlib
import logging
import multiprocessing
import random
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recbole.utils import url as recbole_url

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.errors import DataError, SettingError
from recbole_idiomoe.cli import main
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.amazon import building, fetching
from recbole_idiomoe.data.amazon.building import Dumps
from recbole_idiomoe.data.amazon.fetching import Source, Unavailable, fetch
from recbole_idiomoe.data.location import locate
from tests.data.amazon.dumps import pair
from tests.data.amazon.server import Server, serving

CONTENT = b"\x1f\x8b" + random.Random(7).randbytes(300_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PATIENCE_S", 0.4)
    monkeypatch.setattr(fetching, "PAUSE_S", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/dump.gz").write_bytes(CONTENT)
    with serving(tmp_path / "served") as running:
        yield running


def source(server: Server, **known: Any) -> Source:
    return Source((f"{server.url}/dump.gz",), **known)


def refusal(*arguments: Any) -> str:
    with pytest.raises(Unavailable) as caught:
        fetch(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One file


@pytest.mark.parametrize(
    "faults", [[], ["cut"], ["stall", "cut", "stall"], ["503", "cut", "429", "silent", "500"]]
)
def test_a_file_arrives_whole_whatever_happens(
    faults: list[str], server: Server, tmp_path: Path
) -> None:
    server.faults = list(faults)
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(source(server, size=len(CONTENT), sha256=digest), tmp_path / "data")
    assert path.read_bytes() == CONTENT and path.name == "dump.gz"
    assert [found.name for found in path.parent.iterdir()] == ["dump.gz"]
    assert len(server.asked) == len(faults) + 1
    halves = sum(fault in ("cut", "stall") for fault in faults)
    if halves:  # nothing is asked for twice
        assert server.asked[-1][1] == f"bytes={len(CONTENT) - -(-len(CONTENT) // 2**halves)}-"
    fetch(source(server), tmp_path / "data")
    assert len(server.asked) == len(faults) + 1  # it is there


def test_the_next_command_goes_on_where_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut", *["503"] * fetching.ATTEMPTS]
    kept = len(CONTENT) // 2
    message = refusal(source(server), tmp_path)
    assert message == (
        f"dump.gz from {server.url[7:]}: HTTP Error 503: Service Unavailable; {kept:,} bytes of it "
        f"are kept in {tmp_path}"
    )
    assert not (tmp_path / "dump.gz").exists()
    server.asked.clear()
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("dump.gz", f"bytes={kept}-")]


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.faults = False, ["cut", "cut"]
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "dump.gz.part").write_bytes(CONTENT)
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("dump.gz", f"bytes={len(CONTENT)}-")]
    (tmp_path / "dump.gz").rename(tmp_path / "dump.gz.part")
    (tmp_path / "served/dump.gz").write_bytes(CONTENT[:-1000])  # another file than was begun
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT[:-1000]


@pytest.mark.parametrize(
    ("fault", "asked", "said"),
    [
        ("403", 1, "HTTP 403 Forbidden"),
        ("404", 1, "HTTP 404 Not Found"),
        ("page", 1, "something that is not gzipped"),
        ("silent", 5, "no answer within 0.4 s"),
        ("503", 5, "HTTP Error 503"),
    ],
)
def test_a_refusal_is_told_in_one_line(
    fault: str, asked: int, said: str, server: Server, tmp_path: Path
) -> None:
    server.faults = [fault] * 9
    assert said in refusal(source(server), tmp_path / "data")
    assert len(server.asked) == asked
    assert list((tmp_path / "data").iterdir()) == []


def test_the_next_address_is_asked(server: Server, tmp_path: Path) -> None:
    two = Source((f"{server.url}/dump.gz", f"{server.url}/dump.gz"))
    server.faults = ["403"]
    assert fetch(two, tmp_path / "data").read_bytes() == CONTENT
    server.faults = ["403", "404"]
    assert "403 Forbidden, 127.0.0.1" in refusal(two, tmp_path / "other")


def test_another_file_than_the_known_one_is_not_kept(server: Server, tmp_path: Path) -> None:
    assert "a file of 300,002 bytes, where 5 are known" in refusal(
        source(server, size=5), tmp_path / "data"
    )
    assert "where abc is published" in refusal(source(server, sha256="abc"), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_disk_that_is_too_small_is_not_filled(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"Cannot write .*dump\.gz\.part \(300,002 more bytes do n"):
        fetch(source(server), tmp_path)
    assert len(server.asked) == 1


def test_without_a_network_it_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def nobody(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        raise urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "Name not known"))

    monkeypatch.setattr(urllib.request, "urlopen", nobody)
    nowhere = Source(("https://nowhere.invalid/dump.gz",))
    assert refusal(nowhere, tmp_path) == "dump.gz from nowhere.invalid: Name not known"
    assert len(calls) == 1


@pytest.mark.parametrize(
    "entry",
    [
        "x",
        {"reviews": {"urls": ["https://a/b"]}},
        {"reviews": {"urls": ["file:///etc/passwd"]}, "metadata": {"urls": ["https://a/b"]}},
        {"reviews": {"urls": []}, "metadata": {"urls": ["https://a/b"]}},
        {"reviews": {"url": "https://a/b"}, "metadata": {"urls": ["https://a/b"]}},
        {"reviews": "https://a/b", "metadata": {"urls": ["https://a/b"]}},
    ],
)
def test_an_entry_of_another_form_is_refused(entry: Any) -> None:
    with pytest.raises(SettingError, match=r"^dumps"):
        Dumps.from_setting(entry)


def test_our_own_entries_are_of_that_form() -> None:
    files = sorted((yaml_files.properties_path() / "dataset").glob("amazon-*.yaml"))
    assert len(files) == 9
    for file in files:
        dumps = Dumps.from_setting(yaml_files.read_settings(file)["dumps"])
        for one in (dumps.reviews, dumps.metadata):
            assert {url.rsplit("/", 1)[-1] for url in one.urls} == {one.name}
            assert all(url.startswith("https://") for url in one.urls)


# A data set by its name


@pytest.fixture
def published(server: Server) -> dict[str, Any]:
    reviews, about = pair(server.folder, 2014, users=8, items=6)
    return {"reviews": server.urls(reviews.name), "metadata": server.urls(about.name)}


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> bool:
        raise urllib.error.HTTPError(url, 403, "Access Denied", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(recbole_url, "decide_download", refuse)


def config(root: Path, dumps: Any, name: str = "amazon-toys") -> RunConfig:
    return RunConfig("SASRec", name, settings={"data_path": str(root), "dumps": dumps})


@pytest.mark.parametrize("name", ["amazon-toys", "amazon-sports-2018", "shop"])
def test_a_name_is_enough(
    name: str, published: dict[str, Any], denied: None, tmp_path: Path, server: Server
) -> None:
    server.faults = ["cut", "stall"]
    found = config(tmp_path / "data", published, name)
    locate(found)
    assert found["data_path"] == str(tmp_path / "data" / name)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [name, f"{name}-dumps"]
    asked = len(server.asked)
    locate(config(tmp_path / "data", published, name))
    assert len(server.asked) == asked


def test_the_command_line_goes_on_to_train(
    published: dict[str, Any], denied: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml_files.yaml.safe_dump({"dumps": published}))
    arguments = ["--model=SASRec", "--dataset=amazon-toys", "--epochs=1", "--topk=[5]"]
    arguments += ["--valid_metric=NDCG@5", f"--config_files={file}", f"--data_path={tmp_path}/data"]
    arguments += ["--hidden_size=8", "--inner_size=8", "--use_gpu=False", "--show_progress=False"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert "amazon-toys" in capsys.readouterr().out


def test_when_nobody_has_it_all_reasons_are_in_one_line(
    published: dict[str, Any], denied: None, tmp_path: Path, server: Server
) -> None:
    server.faults = ["403"]
    root = tmp_path / "new" / "data"
    with pytest.raises(DataError) as caught:
        locate(config(root, published))
    assert str(caught.value) == (
        "RecBole cannot download amazon-toys-games (HTTP Error 403: Access Denied), and the public "
        f"dumps cannot be fetched (reviews_Toys_5.json.gz from {server.url[7:]}: HTTP 403 "
        f"Forbidden); put amazon-toys.inter and amazon-toys.item into {root / 'amazon-toys'}, or "
        "name the folder above theirs with --data_path."
    )
    assert not root.parent.exists()


def test_a_damaged_dump_is_fetched_anew(
    published: dict[str, Any], tmp_path: Path, server: Server
) -> None:
    name = "meta_Toys.json.gz"
    whole = (server.folder / name).read_bytes()
    (server.folder / name).write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"meta_Toys\.json\.gz is damaged"):
        locate(config(tmp_path / "data", published, "shop"))
    assert not (tmp_path / "data/shop").exists()
    (server.folder / name).write_bytes(whole)
    server.asked.clear()
    locate(config(tmp_path / "data", published, "shop"))
    assert server.asked == [(name, None)]


def test_the_report_says_what_differs_from_the_published(
    published: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "recbole_idiomoe")
    dumps = Dumps.from_setting(published | {"lines": 48, "table_8": [9, 6]})
    building.build("shop", tmp_path, dumps)
    assert "published: 48 reviews (the same here)" in caplog.text
    assert "Table 8: 9 sequences (-1 here), 6 items (the same here)" in caplog.text


def test_of_several_processes_one_fetches(
    published: dict[str, Any], tmp_path: Path, server: Server
) -> None:
    dumps = Dumps.from_setting(published)
    processes = [
        multiprocessing.get_context("fork").Process(
            target=building.build, args=("shop", tmp_path / "data", dumps)
        )
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.asked) == 2 and (tmp_path / "data/shop/shop.inter").is_file()


def test_a_disk_error_is_not_taken_for_one_of_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fetching.os, "fsync", broken)
    with pytest.raises(DataError, match=r"Cannot write .*Input/output error.*--data_path"):
        fetch(source(server), tmp_path)
