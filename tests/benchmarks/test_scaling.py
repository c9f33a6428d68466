"""The scaling benchmark: as many processes as are asked for take the same steps."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe.lm.bundled import verified_folder
from tests.distributed.ranks import started
from tests.training.cycle import write_cycle

WAYS = ((1,), (2, "--sharding=fsdp2"), (2, "--setting", "shard_items", "True"))
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def measured(arguments: list[str]) -> Any:
    import sys

    sys.path.insert(0, str(BENCHMARKS))
    scaling = importlib.import_module("scaling")
    return [vars(job) for job in scaling.measure(scaling.read_arguments(arguments))]


@pytest.mark.slow
def test_processes_take_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_path = write_cycle(tmp_path / "data" / "amazon-toys", users=60, length=8)
    options = {"data_path": data_path, "tokenizer": verified_folder(weights=False)}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += ["--tiny", "--histories", "8", "16"]
    jobs = [
        started(ranks, tmp_path / "".join(more), measured, [*arguments, *more])
        for ranks, *more in WAYS
    ]
    for one, two, cut in zip(*(job.given()[0] for job in jobs), strict=True):
        assert [one["processes"], two["processes"]] == [1, 2]
        for name in ("histories", "steps", "tokens", "sequences"):
            assert one[name] == two[name] == cut[name] > 0
        assert one["sequences"] <= one["steps"] * one["histories"]
        losses = [two["loss"], cut["loss"]]
        assert losses == pytest.approx([one["loss"]] * 2, rel=0.01)  # in bfloat16

    assert one["link"] is None and one["unsent"] is None and two["unsent"] is None  # fsdp2
    assert two["link"] > 0 and cut["link"] > 0 and cut["unsent"] > 0

    monkeypatch.syspath_prepend(BENCHMARKS)
    scaling = importlib.import_module("scaling")
    ones = dict(one, seconds=4.0, peak_gib=[2.0])
    both = dict(two, seconds=2.5, peak_gib=[2.0, 1.5], unsent=0.004, link=1.5e9, steps=2)
    both["computing"] = 0.003
    larger = [dict(ones, histories=32, seconds=6.0), dict(both, histories=32, seconds=3.0)]
    on_cpu, on_gpu = (
        scaling.table([scaling.Job(**job) for job in jobs])
        for jobs in ([one, two], [ones, larger[0], both, larger[1]])
    )
    assert "ms a step" not in on_cpu
    _, _, alone, together, _, more = on_gpu.splitlines()
    assert alone.startswith("| 16 | 1 |") and "| 1.00 | 100% |" in alone
    assert "| 2.0 / 1.5 | 2.0 | 1.5 | 2 | 1.60 | 80% |" in together
    assert more.startswith("| 32 | 2 |") and "| 2.00 | 100% |" in more  # than one, of as many
