"""A run goes on from another folder than the one that it was started in."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe import api, cli
from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.base.run_folder import read_run
from recbole_idiomoe.config.places import with_absolute_paths
from recbole_idiomoe.recommend import load
from tests.training.cycle import TINY, write_cycle

SASREC = {"hidden_size": 16, "inner_size": 16, "n_layers": 1}


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, in which a run was started with relative paths; we stand beside it."""
    write_cycle(tmp_path / "start" / "DATA" / "cycle")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    return tmp_path / "start"


def run(model: str, **settings: Any) -> dict[str, Any]:
    own = SASREC if model == "SASRec" else {}
    given = TINY | own | {"data_path": "DATA", "epochs": 1} | settings
    [result] = api.run(model, "cycle", settings=given, result_file="r.json")
    return result


def test_result_files_and_resumed_runs_find_their_data(
    started: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("SASRec")
    monkeypatch.chdir(started.parent / "elsewhere")
    [again] = api.run(config_files=["../start/r.json"])
    assert again["test_result"] == first["test_result"]
    [resumed] = api.run(resume=f"../start/{first['folder']}")
    assert resumed["test_result"] == first["test_result"]
    assert not list(Path().rglob("saved/*")) or again["folder"].startswith("saved")
    assert load(f"../start/{first['folder']}").recommend(["i1"], k=2)


def test_a_language_model_finds_its_vectors_and_its_cache(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    ids = np.array([f"i{n}" for n in range(40)])
    np.savez("v.npz", item_ids=ids, vectors=rng.normal(size=(40, 8)).astype(np.float32))
    first = run("IDIOMoE", text_encoder="v.npz", token_cache="tokens", language_file=None)
    kept = read_run(Path(first["folder"]))["settings"]
    for name, path in {
        "data_path": "DATA",
        "text_encoder": "v.npz",
        "token_cache": "tokens",
    }.items():
        assert kept[name] == str(started / path)
    monkeypatch.chdir(started.parent / "elsewhere")
    [again] = api.run(config_files=["../start/r.json"])
    assert again["test_result"] == first["test_result"]
    assert not Path("tokens").exists()


def test_a_table_finds_its_data(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TINY | {"data_path": "DATA", "seeds": 1, "variants": {"A": {"model": "Popularity"}}}
    [first] = api.run(datasets="cycle", settings=settings, result_file="t.json")
    monkeypatch.chdir(started.parent / "elsewhere")
    [again] = api.run(config_files=["../start/t.json"])
    assert again["runs"][0]["test"] == first["runs"][0]["test"]


def test_names_that_are_no_paths_stay(started: Path) -> None:
    Path("bundled").mkdir()
    given = {
        "backbone": "bundled",
        "text_encoder": "sentence-transformers/all-MiniLM-L6-v2",
        "checkpoint_dir": "saved",
        "pre_model_path": "",
        "token_cache": None,
    }
    assert with_absolute_paths(given) == given
    Path("mine").mkdir()
    assert with_absolute_paths({"backbone": "mine"}) == {"backbone": str(started / "mine")}


def test_data_that_moved_are_named_in_one_line(
    started: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(run("SASRec")["folder"])
    moved = started.parent / "moved"
    shutil.move(started, moved)
    monkeypatch.chdir(started.parent / "elsewhere")
    capsys.readouterr()
    assert cli.main([f"--resume={moved / folder}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(started / "DATA") in said and "--data_path" in said
    with pytest.raises(DataError, match="--data_path"):
        load(moved / folder)
    assert cli.main([f"--resume={moved / folder}", f"--data_path={moved / 'DATA'}"]) == 0
    shutil.move(moved, started)
    (started / folder / "run.json").write_text(  # of an older version
        json.dumps(
            (found := read_run(started / folder))
            | {"settings": found["settings"] | {"data_path": "DATA"}}
        )
    )
    assert cli.main([f"--resume={started / folder}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--data_path=DATA in {os.getcwd()}" in said
    assert load(started / folder, data_path=started / "DATA").recommend(["i1"], k=1)
