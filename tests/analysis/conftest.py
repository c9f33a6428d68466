"""Runs that are trained once for all tests of analyses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe import quick_start
from tests.training.cycle import TINY, write_cycle

RUNS: dict[str, dict[str, Any]] = {
    "IDIOMoE": {"expert_width": 0.5},
    "frozen": {"model": "IDIOMoE", "freeze": "backbone"},
    "ItemLLM": {},
    "TitleLLM": {"max_tokens": 128},
    "IDTransformer": {"use_text": False},
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 2},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of trained models, by name."""
    place = tmp_path_factory.mktemp("analysis")
    path = write_cycle(place / "data" / "cycle")
    settings = TINY | {"epochs": 1, "data_path": str(path), "checkpoint_dir": str(place / "saved")}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, own in RUNS.items():
            own = dict(own)
            model = own.pop("model", name)
            (result,) = quick_start.run(model, "cycle", settings=settings | own)
            found[name] = Path(result["folder"])
    return found
