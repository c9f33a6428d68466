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
    return vars(scaling.measure(scaling.read_arguments(arguments)))


def test_processes_take_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_path = write_cycle(tmp_path / "data" / "amazon-toys", users=60, length=8)
    options = {"data_path": data_path, "tokenizer": verified_folder(weights=False)}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += ["--tiny", "--setting", "train_batch_size", "8"]
    jobs = [
        started(ranks, tmp_path / "".join(more), measured, [*arguments, *more])
        for ranks, *more in WAYS
    ]
    one, two, cut = (job.given()[0] for job in jobs)
    assert [one["processes"], two["processes"]] == [1, 2]
    for name in ("steps", "tokens", "sequences"):
        assert one[name] == two[name] == cut[name] > 0
    assert [two["loss"], cut["loss"]] == pytest.approx([one["loss"]] * 2, rel=0.01)  # in bfloat16

    assert one["link"] is None and one["unsent"] is None and two["unsent"] is None  # fsdp2
    assert two["link"] > 0 and cut["link"] > 0 and cut["unsent"] > 0

    monkeypatch.syspath_prepend(BENCHMARKS)
    scaling = importlib.import_module("scaling")
    ones = dict(one, seconds=4.0, peak_gib=[2.0])
    both = dict(two, seconds=2.5, peak_gib=[2.0, 1.5], unsent=0.004, link=1.5e9, steps=2)
    both["computing"] = 0.003
    on_cpu, on_gpu = (
        scaling.table([scaling.Job(**job) for job in jobs]) for jobs in ([one, two], [ones, both])
    )
    assert "ms a step" not in on_cpu and "| 2.0 / 1.5 | 2.0 | 1.5 | 2 | 1.60 | 80% |" in on_gpu
