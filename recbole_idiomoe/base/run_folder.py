"""The folder of a run under ``saved/``, with its model, its catalogue and its settings."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from time import strftime
from typing import Any

from recbole_idiomoe.base.errors import CheckpointError, SettingError, short_reason
from recbole_idiomoe.base.files import unwritable_reason, write_text

RUN_FILE = "run.json"  # model, data set and all settings; after the run, its whole result
RANKS_FILE = "ranks.npz"  # the rank of every test target, see protocol/ranks.py
MIX_RANKS_FILE = "mix-ranks.npz"  # the rank of every test target under the run's mix
CHECKPOINT_FILE = "checkpoint.pth"  # the checkpoint of RecBole's models


def new_folder(parent: Path, name: str) -> Path:
    """A path in ``parent`` for a new folder: ``name``, the time and a random number.

    Numbers of processes would not do: containers that share a disk may have the same.

    Raises:
        SettingError: nothing can be written to ``parent``.
    """
    if reason := unwritable_reason(parent):
        raise SettingError(f"checkpoint_dir={parent} cannot be written ({reason}); name another.")
    return parent / f"{name}-{strftime('%b-%d-%Y_%H-%M-%S')}-{secrets.token_hex(4)}"


def read_run(folder: Path) -> dict[str, Any]:
    """The content of ``RUN_FILE`` in ``folder``.

    Raises:
        CheckpointError: ``folder`` is not the folder of a run.
    """
    try:
        run: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        missing = {"model", "dataset", "settings"} - run.keys()
        if missing:
            raise ValueError(f"no {min(missing)}")
        return run
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        if (folder / "config.json").exists() and not (folder / RUN_FILE).exists():
            raise CheckpointError(
                f"{folder} holds a model of transformers without {RUN_FILE} and catalogue, as "
                "save_pretrained() writes it; open it with AutoModelForCausalLM, or write a folder "
                "with Recommender.save()."
            ) from error
        raise CheckpointError(
            f"{folder} is not the folder of a run: its {RUN_FILE} cannot be read "
            f"({short_reason(error)}); runs are kept under checkpoint_dir, by default saved/."
        ) from error


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``RUN_FILE`` in ``folder``."""
    write_text(folder / RUN_FILE, json.dumps(content, indent=1))
