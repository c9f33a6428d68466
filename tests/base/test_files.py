"""Files that are whole or not there, on a disk that is full and after a kill."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from recbole_idiomoe import cli
from recbole_idiomoe.base.errors import DiskFullError
from recbole_idiomoe.base.files import (
    atomic_folder_update,
    atomic_new_folder,
    atomic_write,
    remove_temporary_files,
    write_text,
)
from recbole_idiomoe.training.observed import ObservedTrainer
from tests.training.cycle import TINY, write_cycle

LARGE = {"a": torch.zeros(500_000), "b": torch.ones(500_000)}  # 4 MB
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 4_000_000),
    "torch": lambda path: torch.save(LARGE, path),
    "safetensors": lambda path: save_file(LARGE, path),
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk takes root on Linux")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_file_before(writer: str, small_disk: Path) -> None:
    path = small_disk / "state"
    write_text(path, "before")
    with pytest.raises(DiskFullError, match="the disk is full") as error, atomic_write(path) as to:
        WRITERS[writer](to)
    assert str(small_disk) in str(error.value) and "\n" not in str(error.value)
    assert path.read_text() == "before" and names(small_disk) == ["state"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_folder_before(writer: str, small_disk: Path) -> None:
    folder = small_disk / "model"
    folder.mkdir()
    for name in ("config", "weights"):
        write_text(folder / name, "before")
    with pytest.raises(DiskFullError), atomic_folder_update(folder) as aside:
        (aside / "config").write_text("after")
        WRITERS[writer](aside / "weights")
    assert {path.read_text() for path in folder.iterdir()} == {"before"}
    with pytest.raises(DiskFullError), atomic_new_folder(small_disk / "other") as aside:
        WRITERS[writer](aside / "weights")
    assert names(small_disk) == ["model"] and names(folder) == ["config", "weights"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_while_it_is_flushed(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As network disks do, whose writes succeed."""
    write_text(tmp_path / "state", "before")

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError):
            write_text(tmp_path / "state", "after")
    assert (tmp_path / "state").read_text() == "before" and names(tmp_path) == ["state"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no disk"), atomic_write(tmp_path / "state"):
        raise RuntimeError("no disk has to do with it")
    with pytest.raises(PermissionError), atomic_folder_update(tmp_path):
        raise PermissionError
    assert names(tmp_path) == []


def test_names_are_flushed_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the file before may be back after a power failure, or neither be there."""
    done: list[Any] = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def renamed(source: Any, target: Any) -> None:
        done.append(("renamed", str(source), str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    path = tmp_path / "state"
    write_text(path, "after")
    aside, rename, names_of = done
    assert rename == ("renamed", aside, str(path)) and names_of == str(tmp_path)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "state", "before")
    (tmp_path / ".hidden").write_text("another's")
    left = [atomic_write(tmp_path / "state"), atomic_folder_update(tmp_path)]
    for writing in left:
        writing.__enter__()
    assert len(names(tmp_path)) == 4
    remove_temporary_files(tmp_path)
    assert names(tmp_path) == [".hidden", "state"]


@pytest.mark.parametrize("model", ["IDIOMoE", "SASRec"])
def test_a_run_whose_disk_is_full_goes_on_when_there_is_room(
    model: str, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_cycle(tmp_path / "data" / "cycle")
    settings = TINY | {"epochs": 4, "data_path": str(path)}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    words = [f"--model={model}", "--dataset=cycle", f"--config_files={tmp_path / 'tiny.yaml'}"]
    assert cli.main([*words, f"--checkpoint_dir={tmp_path / 'roomy'}"]) == 0
    (roomy,) = (tmp_path / "roomy").iterdir()
    # Room for the first epoch's model and state, not for others beside them.
    used = sum(file.stat().st_size for file in roomy.iterdir())
    resize(small_disk, used + 200_000)
    assert cli.main([*words, f"--checkpoint_dir={small_disk}"]) == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ") and "the disk is full" in last and "Traceback" not in said
    resize(small_disk, 50_000_000)
    (folder,) = small_disk.iterdir()
    assert cli.main([f"--resume={folder}"]) == 0
    assert (folder / "model.safetensors").read_bytes() == (roomy / "model.safetensors").read_bytes()


@pytest.mark.parametrize("model", ["IDIOMoE", "SASRec"])
@pytest.mark.parametrize("full_from", ["the start", "an epoch"])
def test_a_disk_that_is_full_for_the_log_alone_is_one_line(
    model: str,
    full_from: str,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_cycle(tmp_path / "data" / "cycle")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data_path": str(path)}))
    monkeypatch.chdir(small_disk)

    def fill() -> None:
        with suppress(OSError), Path("filler").open("ab", buffering=0) as file:
            while file.write(bytes(512)):
                pass

    note = ObservedTrainer._valid_epoch

    def noted(*args: Any, **kwargs: Any) -> Any:
        fill()
        return note(*args, **kwargs)

    if full_from == "the start":
        fill()
    monkeypatch.setattr(ObservedTrainer, "_valid_epoch", noted)
    words = [f"--model={model}", "--dataset=cycle", f"--config_files={tmp_path / 'tiny.yaml'}"]
    assert cli.main([*words, "--epochs=40", f"--checkpoint_dir={tmp_path / 'saved'}"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "Exception in thread" not in said
    assert said.splitlines()[-1].startswith("error: ")
    assert "disk is full" in said or "No space left" in said


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
