"""From two dumps to a data set that RecBole loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_idiomoe.base.errors import DataError, DiskFullError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.amazon import __main__ as command
from recbole_idiomoe.data.amazon.writing import convert
from recbole_idiomoe.data.loading import load_dataset
from tests.data.amazon.dumps import YEARS, block, metadata, pair, review, write


@pytest.mark.parametrize("year", YEARS)
def test_every_year_gives_the_same_files(year: int, tmp_path: Path) -> None:
    convert(*pair(tmp_path / "raw", year), tmp_path / "toys")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "toys"]
    names = ["toys.inter", "toys.item", "toys.summary.json"]
    assert sorted(path.name for path in (tmp_path / "toys").iterdir()) == names
    header, *lines = (tmp_path / "toys/toys.inter").read_text().splitlines()
    assert header == "user_id:token\titem_id:token\ttimestamp:float"
    late = 0.923 if year == 2023 else 0
    expected = sorted(block(), key=lambda row: (row[0], row[2]))
    found = [line.split("\t") for line in lines]
    assert [(user, item, float(time)) for user, item, time in found] == [
        (user, item, time + late) for user, item, time in expected
    ]
    header, *lines = (tmp_path / "toys/toys.item").read_text().splitlines()
    assert header == "item_id:token\ttitle:token\tcategories:token_seq\tbrand:token"
    assert lines[0] == "B000000000\tA toy\tToys & Games|Puzzles\tRavensburger" and len(lines) == 5


@pytest.mark.parametrize("name", ["amazon-toys", "amazon-beauty-2018", "amazon-sports-2023"])
def test_recbole_loads_all_of_it(name: str, tmp_path: Path) -> None:
    """Histories in the order of time, and every item, whether or not the metadata know it."""
    rows = block(users=8, items=6)
    reviews = write(tmp_path / "r.gz", (review(2018, *row) for row in rows))
    items = [metadata(2018, f"B{n:09d}", f'"Toy" no. {n}') for n in range(1, 6)]
    convert(reviews, write(tmp_path / "m.gz", items), tmp_path / name)
    settings = {"data_path": str(tmp_path), "topk": [5], "valid_metric": "NDCG@5"}
    dataset = load_dataset(RunConfig("SASRec", name, settings=settings))
    assert (dataset.user_num - 1, dataset.item_num - 1, dataset.inter_num) == (8, 6, 48)
    assert set(dataset.field2id_token["title"]) == {
        "[PAD]",
        *(f'"Toy" no. {n}' for n in range(1, 6)),
    }


def test_the_core_is_taken_after_repetitions_have_gone(tmp_path: Path) -> None:
    """Five reviews of one item are one; what then falls below five takes others with it."""
    rows = block(users=5, items=5)
    rows += [("AX", "B000000000", n) for n in range(9, 4, -1)]
    rows += [("AY", f"B{n:09d}", 50) for n in range(4)] + [("AY", "BRARE", 50)]
    reviews = write(tmp_path / "r.gz", (review(2018, *row) for row in rows))
    about = write(tmp_path / "m.gz", [metadata(2018, f"B{n:09d}") for n in range(9)])
    summary = convert(reviews, about, tmp_path / "toys")
    assert (summary.users, summary.items, summary.interactions) == (5, 5, 25)
    assert (summary.lines, summary.repeated) == (35, 4)
    everything = convert(reviews, about, tmp_path / "all", core=1)
    assert (everything.users, everything.items, everything.interactions) == (7, 6, 31)
    assert everything.without_metadata == everything.without_title == 1
    assert "AX\tB000000000\t5\n" in (tmp_path / "all/all.inter").read_text()
    assert "BRARE\t\t\t\n" in (tmp_path / "all/all.item").read_text()


def test_of_an_items_rows_the_first_with_a_title_counts(tmp_path: Path) -> None:
    reviews, _ = pair(tmp_path, 2018)
    titles = [(0, ""), (0, "One"), (0, "Two"), (1, "Three"), (1, "")]
    lines = [metadata(2018, f"B{item:09d}", title) for item, title in titles]
    summary = convert(reviews, write(tmp_path / "m.gz", lines), tmp_path / "toys")
    lines = (tmp_path / "toys/toys.item").read_text().splitlines()
    titles_there = [line.split("\t")[1] for line in lines]
    assert titles_there == ["title:token", "One", "Three", "", "", ""]
    assert (summary.without_metadata, summary.without_title) == (3, 3)


def test_the_summary_counts_what_was_skipped(tmp_path: Path) -> None:
    _, about = pair(tmp_path, 2014)
    lines = [*(review(2014, *row) for row in block()), b"{\n", b"[]\n", b"[]\n"]
    summary = convert(write(tmp_path / "r.gz", lines), about, tmp_path / "toys")
    assert summary.malformed == {"neither JSON nor a Python literal": 1, "no object": 2}
    assert (
        "33 lines of r.gz; 3 malformed (1 neither JSON nor a Python literal, 2 no object), 0 "
        in (summary.text())
    )
    assert json.loads((tmp_path / "toys/toys.summary.json").read_text())["interactions"] == 30


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    reviews, about = pair(tmp_path / "raw", 2018)
    cut = tmp_path / "raw/cut.gz"
    cut.write_bytes(about.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cut\.gz is damaged"):
        convert(reviews, cut, tmp_path / "toys")
    with pytest.raises(DataError, match=r"no user has 7 interactions .*lower --core"):
        convert(reviews, about, tmp_path / "toys", core=7)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys/mine.txt").touch()
    with pytest.raises(DataError, match="toys holds files already"):
        convert(reviews, about, tmp_path / "toys")
    assert [path.name for path in (tmp_path / "toys").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="the disk is full"):
        convert(*pair(tmp_path / "raw", 2018), tmp_path / "toys")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


# The command


def given(tmp_path: Path, *more: str) -> list[str]:
    reviews, about = pair(tmp_path / "raw", 2014)
    return [f"--data_path={tmp_path}", f"--reviews={reviews}", f"--metadata={about}", *more]


def test_the_command_holds_its_counts_against_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(given(tmp_path, "--dataset=amazon-beauty")) == 0
    said = capsys.readouterr().out
    assert "amazon-beauty: 6 users, 5 items, 30 interactions (5.00 a user)" in said
    assert "published: 198,502 reviews (-198,472 here)" in said
    assert "Table 8: 22,363 sequences (-22,357 here), 12,101 items (-12,096 here)" in said
    assert command.main(given(tmp_path, "--dataset=mine")) == 0
    assert "Table 8" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset=x"], "the addresses of x's dumps are unknown"),
        (["--dataset=x", "--reviews=r"], "--reviews and --metadata go together"),
        (["--dataset=x", "--reviews=r", "--metadata=m"], "Cannot read r: No such file"),
        (["--dataset=x", "--core=0"], "--core must be at least 1"),
    ],
)
def test_the_command_ends_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_module_can_be_run(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "recbole_idiomoe.data.amazon", *given(tmp_path, "--dataset=x")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "x: 6 users" in done.stdout, done.stderr
    assert (tmp_path / "x/x.inter").is_file()
