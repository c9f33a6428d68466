"""Result files: the JSON that ``result_file`` names, written and read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_idiomoe.base.errors import IdiomoeError, short_reason
from recbole_idiomoe.base.files import unwritable_reason, write_text

Result = Mapping[str, Any]


def check_writable(path: str | Path) -> None:
    """Check before training that a result file can be written to ``path``.

    Raises:
        IdiomoeError: ``path`` is a folder or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise IdiomoeError(f"result_file={path} is a folder; name a file in it.")
    if reason := unwritable_reason(path.parent):
        raise IdiomoeError(f"result_file={path} cannot be written ({reason}); name another.")
    if path.exists() and not os.access(path, os.W_OK):
        raise IdiomoeError(f"result_file={path} is there and write-protected; name another.")


def write_result(path: str | Path, results: Sequence[Result]) -> None:
    """Write ``results`` as JSON in one step: an object for one run, a list for several.

    Raises:
        IdiomoeError: the file cannot be written.
    """
    content = results[0] if len(results) == 1 else list(results)
    try:
        write_text(Path(path), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise IdiomoeError(f"Cannot write {path}: {error.strerror}.") from error


def read_grid(path: Path) -> dict[str, Any]:
    """Read the result file of a grid, a run of several variants or seeds.

    Raises:
        IdiomoeError: the file cannot be read, or holds something else.
    """
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = short_reason(error)
        raise IdiomoeError(f"{path} cannot be read as a result file ({reason}).") from error
    if not isinstance(grid, dict) or not {"baseline", "protocol", "runs"} <= grid.keys():
        raise IdiomoeError(
            f"{path} is not the result file of variants or seeds; name one of those."
        )
    return grid


def merge_grids(grids: Sequence[Result]) -> dict[str, Any]:
    """Join the runs of several grids into one, with the baseline of the first.

    Raises:
        IdiomoeError: two grids have the same row on the same data set, or different protocols.
    """
    protocols: dict[str, Any] = {}
    places: set[tuple[str, str]] = set()
    for grid in grids:
        for dataset, found in grid["protocol"].items():
            if protocols.setdefault(dataset, found) != found:
                raise IdiomoeError(
                    f"the protocols on {dataset} differ: the numbers do not compare."
                )
        ran = {(run["dataset"], run["variant"]) for run in grid["runs"]}
        if twice := places & ran:
            raise IdiomoeError("two files have a row {1!r} on {0}.".format(*min(twice)))
        places |= ran
    return {
        "baseline": grids[0]["baseline"],
        "protocol": protocols,
        "runs": [run for grid in grids for run in grid["runs"]],
    }
