"""Every model's metrics are what they were: a change that is meant writes the file anew."""

import json
from pathlib import Path

import pytest

from recbole_idiomoe.base.environment import versions
from recbole_idiomoe.models.registry import MODELS
from tests.golden.runs import FILE, OWN, cpu, metrics_of, write_part_of_ml_100k

GOLDEN = json.loads(FILE.read_text())
TOLERANCE = 1e-4
# A last bit decides between two clusters, and the makers of CPUs round differently; the file's
# ``clustered`` has what the same code gives on CPUs of other makers.
CLUSTERED = {"TIGER"}


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_part_of_ml_100k(tmp_path_factory.mktemp("data") / "part")


def test_every_model_of_ours_is_in_the_file() -> None:
    assert set(MODELS) < set(GOLDEN["metrics"]) == set(OWN)
    distinct = {tuple(metrics.values()) for metrics in GOLDEN["metrics"].values()}
    assert len(distinct) == len(OWN)  # none stands in for another


@pytest.mark.parametrize("model", OWN)
def test_metrics_are_what_they_were(model: str, data_path: Path) -> None:
    """Under the versions that the file names; a library may draw or round in another way."""
    same = {name: now == GOLDEN["versions"][name] for name, now in versions().items()}
    moved = [name for name in ("torch", "transformers", "numpy", "scipy") if not same[name]]
    wanted = GOLDEN["metrics"][model]
    if model in CLUSTERED:
        wanted = GOLDEN["clustered"].get(cpu(), {}).get(model, wanted)
        if not cpu().startswith(GOLDEN["cpu"]):
            moved.append("the CPU's instructions")
    if moved:
        pytest.skip(f"made with other versions of {', '.join(moved)}: python -m tests.golden.runs")
    assert metrics_of(model, data_path) == pytest.approx(wanted, abs=TOLERANCE, rel=0)
