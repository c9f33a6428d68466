"""A run's folder under ``saved/``: the model, its catalogue, and how it came about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_idiomoe.base.errors import CheckpointError, SettingError, short_reason
from recbole_idiomoe.base.files import unwritable_reason, write_text

RUN_FILE = "run.json"
"""Model, dataset and complete settings; after the run, its whole result."""

RANKS_FILE = "ranks.npz"
"""The rank of every test target: :class:`recbole_idiomoe.protocol.ranks.Ranks`."""

MIX_RANKS_FILE = "mix-ranks.npz"
"""The rank of every test target under the run's mix."""

CHECKPOINT_FILE = "checkpoint.pth"
"""RecBole's own checkpoint, for RecBole's models."""


def new_folder(parent: Path, name: str) -> Path:
    """The path ``parent/name``, or with a number behind it if a run has that already.

    Raises:
        SettingError: nothing can be written to ``parent``.
    """
    if reason := unwritable_reason(parent):
        raise SettingError(f"checkpoint_dir={parent} cannot be written ({reason}); name another.")
    folder, count = parent / name, 1
    while folder.exists():
        count += 1
        folder = parent / f"{name}-{count}"
    return folder


def read_run(folder: Path) -> dict[str, Any]:
    """What :func:`write_run` wrote into ``folder``.

    Raises:
        CheckpointError: it is not the folder of a run.
    """
    try:
        run: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        missing = {"model", "dataset", "settings"} - run.keys()
        if missing:
            raise ValueError(f"no {min(missing)}")
        return run
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} is not the folder of a run: its {RUN_FILE} cannot be read "
            f"({short_reason(error)}); runs are kept under checkpoint_dir, by default saved/."
        ) from error


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Describe the run that ``folder`` belongs to."""
    write_text(folder / RUN_FILE, json.dumps(content, indent=1))
