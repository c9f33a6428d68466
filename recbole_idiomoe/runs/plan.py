"""What will be run: settings are resolved and the data is found, or the request is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.run_folder import new_folder
from recbole_idiomoe.config.checks import check_text_file, check_workers
from recbole_idiomoe.config.evaluation import check_mask
from recbole_idiomoe.config.places import with_absolute_paths
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import find_data
from recbole_idiomoe.runs.request import RunRequest


@dataclass(frozen=True)
class RunPlan:
    """One run that can be executed.

    Attributes:
        config: the resolved and checked config, with the paths of the data set's files.
        settings: the complete settings, before the run changes any, with absolute paths.
        folder: the folder that the run writes.
        resume: the folder of the unfinished run to resume; None: a new run.
        tests: whether to evaluate the test split.
    """

    config: RunConfig
    settings: dict[str, Any]
    folder: Path
    resume: Path | None
    tests: bool


def plan(request: RunRequest) -> RunPlan:
    """Resolve the settings of ``request``, find its data and choose its folder.

    Raises:
        IdiomoeError: a setting is invalid, or a file or device is missing; the message is one line.
    """
    config = RunConfig(
        request.model,
        request.dataset,
        request.config_files,
        request.settings,
        request.beside,
        request.own,
    )
    check_mask(config)
    check_workers(config["worker"])
    if config["language_file"]:
        check_text_file("language_file", config["language_file"])
    settings = with_absolute_paths(config.complete_settings())
    folder = request.folder or request.resume
    if folder is None:
        parent, name = Path(config["checkpoint_dir"]), f"{config['model']}-{config['dataset']}"
        folder = distributed.from_main(lambda: new_folder(parent, name))
    config["checkpoint_dir"] = str(folder.parent)  # of a resumed run, where it was written
    find_data(config)
    return RunPlan(config, settings, folder, request.resume, request.tests)
