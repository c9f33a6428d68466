"""What training does differently on a GPU, against the plain way of doing it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recbole_idiomoe import api, load
from recbole_idiomoe.data.loader import WindowLoader
from recbole_idiomoe.training.micro_batches import MicroBatches
from tests.training.cycle import TINY, write_cycle

pytestmark = pytest.mark.gpu


def train(tmp_path: Path, folder: str, **settings: Any) -> dict[str, torch.Tensor]:
    """Weights after two epochs."""
    if not (tmp_path / "data").exists():
        write_cycle(tmp_path / "data" / "cycle")
    where = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / folder)}
    given = {"epochs": 2, "dropout": 0.0, "precision": "fp32", "gpu_id": "0"} | where | settings
    (result,) = api.run("IDIOMoE", "cycle", settings=TINY | given)
    return load_file(Path(result["folder"]) / "model.safetensors")


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """As close as two runs of atomic additions; each weight may have moved by 0.04."""
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_that_are_computed_again_learn_the_same(
    precision: str, compiled: bool, tmp_path: Path
) -> None:
    plain = train(tmp_path, "plain", precision=precision, compile=compiled)
    again = {"activation_checkpointing": True, "compile": compiled}
    found = train(tmp_path, "again", precision=precision, **again)
    for name, weight in plain.items():
        tolerance = 1e-3 if precision == "fp32" else 2e-2
        torch.testing.assert_close(found[name], weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [
        {"attention": "causal"},
        {"attention": "intra_inter"},
        {"text_smoothing": 0.2, "transition_smoothing": 0.3},
    ],
    ids=str,
)
def test_gradients_are_made_without_a_wait(
    precision: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = MicroBatches.run, []

    def watched(self: MicroBatches, number: int, batches: Any) -> Any:
        steps.append(number)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(self, number, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(MicroBatches, "run", watched)
    train(tmp_path, "run", precision=precision, **options)
    assert len(steps) > 2


def test_fused_adamw_is_adamw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []

    class Plain(torch.optim.AdamW):
        def __init__(self, *args: Any, fused: Any, **options: Any) -> None:
            chosen.append(fused)
            super().__init__(*args, **options)

    fused = train(tmp_path, "fused")
    monkeypatch.setattr(torch.optim, "AdamW", Plain)
    assert_close(fused, train(tmp_path, "plain"))
    assert chosen == [True]


def test_batches_come_pinned_and_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    ahead = train(tmp_path, "ahead")

    def as_it_comes(loader: WindowLoader) -> Iterator[Any]:
        for step in loader._loader:
            pinned.extend(batch.input_ids.is_pinned() for batch in step)
            yield [batch.to("cuda") for batch in step]

    monkeypatch.setattr(WindowLoader, "__iter__", as_it_comes)
    assert_close(ahead, train(tmp_path, "as it comes"))
    assert pinned and all(pinned)


@pytest.mark.parametrize("model", ["GRU4Rec", "SASRec", "HSTU"])
def test_a_baseline_trained_here_recommends_here(model: str, tmp_path: Path) -> None:
    write_cycle(tmp_path / "data" / "cycle")
    where = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "run")}
    own = TINY | where | {"epochs": 1, "gpu_id": "0", "train_batch_size": 64}
    (result,) = api.run(model, "cycle", settings=own)
    assert len(load(result["folder"]).recommend([["i1", "i2"]], k=3)[0]) == 3
