"""The scripts about serving run to their end on a CPU, and their tables say what they should."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Starting Python with all libraries, twice, takes longer than what is measured.
pytestmark = pytest.mark.slow


def output(script: str, *options: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--tiny", *options]
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True, timeout=300
    ).stdout


def cells(text: str) -> dict[str, list[str]]:
    """Rows of the tables, by their first cell."""
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in rows}


def test_evaluation() -> None:
    found = cells(output("evaluation.py"))
    parts = [float(row[0].rstrip("%")) for row in found.values() if "%" in row[0]]
    assert parts[0] == 100 and sum(parts[1:]) == pytest.approx(100, abs=1)
    memory = {users: list(map(float, found[users])) for users in ("128", "256", "512")}
    assert [flat for _, flat, _ in memory.values()] == [1, 1, 1]
    assert memory["512"][2] > 3 * memory["128"][2] > 10 * memory["128"][0]


def test_recommend() -> None:
    text = output("recommend.py", "--items=500", "--repeats=3")
    found = cells(text)
    assert found["recommend"] == ["of 1 history's time", "each history"]  # no ms of a CPU
    assert float(found["1 history"][0]) == 1
    of_many, each = map(float, found["64 histories"])
    assert of_many == pytest.approx(64 * each, rel=0.1)
