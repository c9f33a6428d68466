"""Folders of runs that an earlier version wrote are loaded, and gone on with.

``old_runs`` was written by the version of November 2026, before the package was divided into
rooms: two epochs of tiny models on the data set that ``write_cycle`` writes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe import api, load
from tests.training.cycle import write_cycle
from tests.words import few_words

OLD = Path(__file__).with_name("old_runs")
EXPECTED: dict[str, list[Any]] = json.loads((OLD / "expected.json").read_text())


def folder_of(name: str, place: Path) -> Path:
    """A copy of an old folder that points at its data set."""
    folder = Path(shutil.copytree(OLD / name, place / name))
    data = write_cycle(place / "cycle", items=12, users=20, length=6)
    run = json.loads((folder / "run.json").read_text())
    run["settings"]["data_path"] = str(data)
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_folder_recommends_what_it_did(name: str, tmp_path: Path) -> None:
    found = load(folder_of(name, tmp_path), "cpu").recommend(["i3", "i4", "i5"], k=4)
    assert [item.item_id for item in found] == [item for item, _ in EXPECTED[name]]
    wanted = [score for _, score in EXPECTED[name]]
    assert [item.score for item in found] == pytest.approx(wanted, abs=1e-3)


def test_an_old_run_is_resumed(tmp_path: Path) -> None:
    folder = folder_of("IDIOMoE", tmp_path)
    before = json.loads((folder / "run.json").read_text())["learning_curve"]
    (tmp_path / "words").mkdir()
    with few_words(tmp_path / "words"):
        (result,) = api.run(resume=folder, settings={"epochs": 4, "gpu_id": ""})
    assert result["epochs"] == 4 and result["learning_curve"][:2] == before
