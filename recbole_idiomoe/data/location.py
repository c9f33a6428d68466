"""Finding or downloading a data set's atomic files."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from recbole.utils import url as recbole_url

from recbole_idiomoe.base.errors import DataError, did_you_mean
from recbole_idiomoe.base.recbole_package import recbole_folder
from recbole_idiomoe.data.amazon.building import Dumps, build, new_folder
from recbole_idiomoe.data.amazon.fetching import Unavailable
from recbole_idiomoe.data.names import list_datasets, recbole_datasets

_TIMEOUT_S = 30.0  # without it, RecBole's download would wait for ever on a silent connection


class DataSettings(Protocol):
    """The part of a run's configuration that finding its data set needs."""

    data_root: Path  # the folder with a folder for each data set
    dataset_class: type[Any]  # the subclass of RecBole's ``Dataset`` that the model is trained on
    read_by_model: set[str]  # names of settings that the model's own files mention

    def __getitem__(self, key: str) -> Any: ...
    def __setitem__(self, key: str, value: Any) -> None: ...


def locate(config: DataSettings) -> None:
    """Find the data set's files, or download them, and set their place in ``config``.

    The places are tried in this order: ``<data_path>/<dataset>``, the folder with RecBole's name
    of the data set, RecBole's copy of ml-100k, RecBole's download, and the public dumps that the
    setting ``dumps`` names. Sets ``config["dataset"]`` to the name in the files and
    ``config["data_path"]`` to their folder; ``config["dataset_label"]`` stays the name that the
    user gave.

    Raises:
        DataError: the name is unknown and has no folder, the folder lacks a file, or the download
            failed, which leaves no partial files.
    """
    config["dataset"], folder = _find(config)
    config["data_path"] = str(folder)


def _find(config: DataSettings) -> tuple[str, Path]:
    """The name in the files, and their folder."""
    label, root = config["dataset_label"], config.data_root
    recbole_name = config["recbole_name"] or label
    for name in (label, recbole_name):
        if all(path.is_file() for path in interaction_files(config, root / name, name)):
            return name, root / name
    for name in (label, recbole_name):
        if (root / name).is_dir():
            files = interaction_files(config, root / name, name)
            missing = next(path for path in files if not path.is_file())
            raise DataError(
                f"{root / name} holds no {missing.name}; put it there, or name another folder with "
                "--data_path."
            )
        if all(path.is_file() for path in interaction_files(config, root, name)):
            is_own = root.resolve().name == name
            fix = "name the folder above it" if is_own else f"move its files into {root / name}"
            raise DataError(
                f"--data_path={root} holds the files of {name} itself, and must hold a folder "
                f"{name}; {fix}."
            )
    if label == "ml-100k":
        return label, recbole_folder() / "dataset_example" / "ml-100k"
    sources: list[tuple[str, Callable[[str, Path], None], str]] = []
    if recbole_name in recbole_datasets():
        sources.append((recbole_name, _download, f"RecBole cannot download {recbole_name}"))
    if config["dumps"]:
        build_dumps = partial(build, dumps=Dumps.from_setting(config["dumps"]))
        sources.append((label, build_dumps, "the public dumps cannot be fetched"))
    failures = []
    for name, get, failure in sources:
        try:
            get(name, root)
            return name, root / name
        except Unavailable as error:
            failures.append(f"{failure} ({error})")
    if failures:
        raise DataError(
            f"{', and '.join(failures)}; put {label}.inter and {label}.item into {root / label}, "
            "or name the folder above theirs with --data_path."
        )
    near = did_you_mean(label, list_datasets(), "--list_datasets")
    if not root.is_dir():
        where = "" if root.is_absolute() else f" in {Path.cwd()}, where this command runs"
        raise DataError(
            f"unknown dataset {label!r}, and there is no folder --data_path={root}{where}; name "
            f"the folder that holds {label}/ with --data_path{near}"
        )
    raise DataError(
        f"unknown dataset {label!r}, and {root / label} is no folder that holds "
        f"{label}.inter (--data_path={root}){near}"
    )


def interaction_files(config: DataSettings, folder: Path, name: str) -> list[Path]:
    """The interaction files: one, or one for each part of a split in ``benchmark_filename``."""
    parts = config["benchmark_filename"]
    names = [f"{name}.{part}.inter" for part in parts] if parts else [f"{name}.inter"]
    return [folder / file for file in names]


def _download(name: str, root: Path) -> None:
    """Download RecBole's data set ``name`` into ``root/name`` atomically."""
    url = recbole_datasets()[name]
    try:
        with (
            new_folder(root),
            tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as temporary,
            ExitStack() as after,
        ):
            after.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(_TIMEOUT_S)
            if not recbole_url.decide_download(url):
                raise DataError("the download was declined")
            archive = Path(recbole_url.download_url(url, temporary))
            files = Path(temporary) / name
            recbole_url.extract_zip(str(archive), str(files))
            recbole_url.rename_atomic_files(str(files), archive.stem, name)
            if not (files / f"{name}.inter").is_file():
                raise DataError(f"the archive holds no {name}.inter")
            os.replace(files, root / name)
    # RecBole passes on any error of urllib, zipfile and the file system.
    except Exception as error:
        raise Unavailable(" ".join(str(error).split()) or type(error).__name__) from error
