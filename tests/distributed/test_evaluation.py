"""Processes that share the users of an evaluation measure what one process measures."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.dataloader import FullSortEvalDataLoader

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.run_folder import MIX_RANKS_FILE, RANKS_FILE
from recbole_idiomoe.protocol.loader import OwnRows, in_order, own_rows
from tests.distributed.ranks import runs, started
from tests.training.cycle import TINY, write_cycle

ALSO: dict[str, dict[str, Any]] = {
    "mixed": {
        "mix": "TransitionCounter",
        "metrics": [
            *("Hit", "NDCG", "MRR", "ItemCoverage", "AveragePopularity"),
            *("ShannonEntropy", "GiniIndex", "TailPercentage"),
        ],
    },
    "cold start": {"cold_start": 0.2},
}
MEASURED = ("best_valid_result", "test_result", "mix", "cold_start")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of finished runs of one process."""
    data = write_cycle(tmp_path_factory.mktemp("data") / "cycle", users=33, both_ways=True)
    settings = TINY | {"data_path": str(data), "epochs": 1, "eval_batch_size": 7}
    asked = [
        {"models": "IDIOMoE", "datasets": "cycle", "settings": settings | more}
        for more in ALSO.values()
    ]
    folder = tmp_path_factory.mktemp("one")
    [results] = started(1, folder, runs, *asked).given()
    found = zip(ALSO, results, strict=True)
    return {name: folder / result["folder"] for name, result in found}


# 33 users: batches of 7 are five, the last of them short; 256 is one for two processes.
AGAIN = [
    ("mixed", {"eval_batch_size": 7}),
    ("mixed", {"eval_batch_size": 7, "sharding": "fsdp2"}),
    ("mixed", {"eval_batch_size": 256, "sharding": "fsdp2"}),
    ("mixed", {"eval_batch_size": 7, "shard_items": True}),
    ("mixed", {"eval_batch_size": 256, "shard_items": True}),
    ("cold start", {"eval_batch_size": 7}),
]


def measured_again(ranks: int, trained: dict[str, Path], place: Path) -> list[dict[str, Any]]:
    """Copies of finished runs, which have nothing left but to be tested."""
    asked = []
    for number, (name, settings) in enumerate(AGAIN):
        copied = shutil.copytree(trained[name], place / str(number))
        asked.append({"resume": copied, "settings": settings})
    results: list[dict[str, Any]] = started(ranks, place, runs, *asked).given()[0]
    return results


def test_metrics_and_ranks_are_those_of_one_process(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    ones, twos = (measured_again(n, trained, tmp_path / str(n)) for n in (1, 2))
    for one, two in zip(ones, twos, strict=True):
        for name in MEASURED:
            expected, found = one.get(name), two.get(name)
            for each in (expected, found):
                if isinstance(each, dict):
                    each.pop("eval_seconds", None)
            assert found == expected
        assert ("mix" in two) != ("cold_start" in two)
        for file in (RANKS_FILE, MIX_RANKS_FILE) if "mix" in two else ():
            expected, found = (np.load(Path(run["folder"]) / file) for run in (one, two))
            assert len(found["rank"]) == 33
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])


# Dealing out


class Loader(FullSortEvalDataLoader):  # type: ignore[misc]
    """As much of a loader as is dealt out."""

    def __init__(self, rows: int, step: int) -> None:
        self.sample_size, self.step = rows, step
        self.batch_sampler = torch.utils.data.BatchSampler(OwnRows(self), step, drop_last=False)

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        return iter(self.batch_sampler)

    def __len__(self) -> int:
        return len(self.batch_sampler)


@given(rows=st.integers(1, 60), step=st.integers(1, 20), ranks=st.integers(1, 7))
def test_every_batch_goes_to_one_process_as_it_is(rows: int, step: int, ranks: int) -> None:
    loader = Loader(rows, step)
    whole = list(loader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: ranks)
        dealt, parts = [], []
        for rank in range(ranks):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            dealt.append(list(loader))
            assert len(dealt[-1]) == len(loader)
            parts.append((own_rows(loader), 10 * torch.tensor([*chain(*dealt[-1])])))
        assert len({len(batches) for batches in dealt}) == 1  # all do as many passes
        assert all(batch in whole for batches in dealt for batch in batches)
        patch.setattr(distributed, "gathered", lambda value: parts)
        assert in_order(parts[0][1], loader).tolist() == [10 * row for row in range(rows)]


def test_sampled_candidates_are_not_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    loader = SimpleNamespace(sample_size=5)
    values = torch.arange(5)
    assert own_rows(loader).tolist() == [0, 1, 2, 3, 4]
    assert in_order(values, loader) is values
