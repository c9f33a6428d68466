"""The synthetic catalogue is a 5-core that anybody can load; stages are measured from outside."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import read_catalog
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.protocol.splits import split_dataset

ROOT = Path(__file__).parents[2]
USERS, ITEMS, INTERACTIONS = 120, 60, 1000


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmarks' modules, which find each other as scripts do."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    names = ("at_size", "stages", "synthetic_catalogue")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def books(scripts: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "books"
    scripts.synthetic_catalogue.write(folder, USERS, ITEMS, INTERACTIONS, seed=1)
    return folder


def test_everybody_has_five_different_items_and_every_item_five_users(books: Path) -> None:
    header, *rows = (books / "books.inter").read_text().splitlines()
    assert header == "user_id:token\titem_id:token\ttimestamp:float"
    users, items, times = zip(*(row.split("\t") for row in rows), strict=True)
    assert len(rows) == len(set(zip(users, items, strict=True))) == INTERACTIONS
    for names, count in ((users, USERS), (items, ITEMS)):
        found = Counter(names)
        assert len(found) == count and min(found.values()) >= 5
    # A user's reviews stand together, in the order of time.
    order = list(zip([users.index(user) for user in users], map(int, times), strict=True))
    assert order == sorted(order)
    titles = [row.split("\t")[1] for row in (books / "books.item").read_text().splitlines()[1:]]
    assert len(titles) == ITEMS and min(map(len, titles)) > 1
    assert 4 <= np.median([len(title.split()) for title in titles]) <= 9


def test_a_seed_makes_the_same_files(scripts: Any, books: Path, tmp_path: Path) -> None:
    def content(seed: int) -> list[bytes]:
        folder = tmp_path / str(seed) / "books"
        scripts.synthetic_catalogue.write(folder, USERS, ITEMS, INTERACTIONS, seed)
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    assert content(1) == [path.read_bytes() for path in sorted(books.iterdir())]
    assert content(2) != [path.read_bytes() for path in sorted(books.iterdir())]
    with pytest.raises(FileExistsError):
        scripts.synthetic_catalogue.write(books, USERS, ITEMS, INTERACTIONS)


@pytest.mark.parametrize("users", [USERS, 1000])
def test_nothing_is_left_of_what_cannot_be(users: int, scripts: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="interactions"):
        scripts.synthetic_catalogue.write(tmp_path / "books", users, 10, 2000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["SASRec", "IDIOMoE"])
def test_both_kinds_of_models_load_it(model: str, scripts: Any, books: Path) -> None:
    settings = scripts.synthetic_catalogue.SETTINGS | {
        "data_path": str(books.parent),
        "show_progress": False,
        "gpu_id": "",
    }
    config = RunConfig(model, "books", settings=settings)
    dataset = load_dataset(config)
    counts = (dataset.user_num - 1, dataset.item_num - 1, dataset.inter_num)
    assert counts == (USERS, ITEMS, INTERACTIONS)
    splits = split_dataset(config, dataset)
    train, valid, test = splits.train, splits.valid, splits.test
    assert len(valid._dataset) == len(test._dataset) == USERS
    assert len(train._dataset) == INTERACTIONS - 3 * USERS
    texts = read_catalog(train._dataset, TextOptions.from_mapping(config)).texts[1:]
    assert all(text.startswith("title: ") and ", category: Books, " in text for text in texts)
    with open(books / "books.inter", "a") as file:
        file.write("u\ti\tsoon\n")
    with pytest.raises(DataError, match=f"line {INTERACTIONS + 2}: timestamp is 'soon'"):
        load_dataset(RunConfig(model, "books", settings=settings))


STAGES = """
import sys; sys.path.insert(0, sys.argv[1])
from stages import stage
print("said besides")
with stage("small"): small = bytes(1)
with stage("large"): large = bytearray(b"x" * (300 << 20))
with stage("none left"): del large
"""


def test_stages_are_measured_from_outside(scripts: Any, tmp_path: Path, capfd: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(STAGES)
    command = [str(script), str(ROOT / "benchmarks")]
    small, large, after = scripts.stages.measure(command, most_gib=8, most_seconds=60)
    assert (small.name, large.name, after.name) == ("small", "large", "none left")
    assert 0.29 < large.gib - small.gib < 0.7  # two copies, for a moment
    assert min(one.seconds for one in (small, large, after)) >= 0
    assert "said besides" in capfd.readouterr().err

    with pytest.raises(scripts.stages.Stopped, match=r"stopped at 0\.[2-6] GiB") as stopped:
        scripts.stages.measure(command, most_gib=0.2, most_seconds=60)
    assert [one.name for one in stopped.value.stages] == ["small"]
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(scripts.stages.Stopped, match=r"after [0-9] s"):
        scripts.stages.measure(command, most_gib=8, most_seconds=0.5)
    script.write_text("raise SystemExit(3)")
    with pytest.raises(subprocess.CalledProcessError):
        scripts.stages.measure(command, most_gib=8, most_seconds=60)


def test_the_way_to_the_loaders_is_compared(scripts: Any) -> None:
    stage = scripts.stages.Stage
    mine = [stage("rows checked", 1.0, 1.0), stage("rows and split", 3.0, 2.0)]
    mine.append(stage("training slice", 50.0, 9.0))
    theirs = [stage("files to tables", 6.0, 3.0), stage("rows and split", 2.0, 5.0)]
    text = scripts.at_size.table(mine, theirs, {})
    assert "| training slice | 50.00 | 9.00 |" in text
    assert text.endswith(
        "4.00 s and 2.00 GiB; RecBole's 8.00 s and 5.00 GiB: 2.00 times the "
        "time, 2.50 times the memory."
    )
    text = scripts.at_size.table(mine, theirs[:1], {"recbole": "stopped at 16.0 GiB after 9 s"})
    assert text.endswith("recbole: stopped at 16.0 GiB after 9 s.") and "times" not in text


@pytest.mark.slow
def test_the_whole_of_a_tiny_catalogue(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "at_size.py"), "--tiny"]
    output = subprocess.run(
        [*command, f"--data_path={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=300,
    ).stdout
    rows = [line.split("|")[1:-1] for line in output.splitlines() if line.startswith("|")]
    gib = {name.strip(): float(peak) for name, _, peak in rows[2:]}
    assert len(gib) == 16 and min(gib.values()) > 0.1
    assert {"training slice", "evaluation slice", "RecBole: rows and split"} <= gib.keys()
    assert "times the memory" in output
