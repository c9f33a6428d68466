"""A leaderboard that is run by hand-made runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe import api
from recbole_idiomoe.grid import running as grid_runs
from recbole_idiomoe.leaderboard import plots
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs import plan as plans
from tests.leaderboard.boards import Runner

Lead = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and are tested by themselves."""
    monkeypatch.setattr(plots, "can_draw", lambda: False)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    made = Runner()
    monkeypatch.setattr(execution, "execute", made)
    monkeypatch.setattr(plans, "find_data", lambda config: None)
    monkeypatch.setattr(grid_runs, "locate", lambda config: None)  # it reads no data
    return made


@pytest.fixture
def lead(runner: Runner) -> Lead:
    """``api.run`` with a leaderboard in ``board``; its one result."""

    def run(models: str = "SASRec,IDIOMoE", dataset: str = "amazon-toys", **given: Any) -> Any:
        options = {name: given.pop(name) for name in ("jobs", "config_files") if name in given}
        settings = {"data_path": str(Path("data").absolute()), "gpu_id": ""} | given
        (result,) = api.run(models, dataset, settings=settings, leaderboard="board", **options)
        return result

    return run
