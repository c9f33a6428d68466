"""Steps that do not fit into memory: made of smaller batches, with the same outcome."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.training import micro_batches
from recbole_idiomoe.training.micro_batches import MicroBatches
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from tests.data.test_loader import make_loader, supervised
from tests.training.cycle import TINY, write_cycle

LARGE = 32768


@pytest.fixture
def data_path(tmp_path: Path) -> str:
    return str(write_cycle(tmp_path / "data" / "cycle"))


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Lets no batch of more than so many tokens through; returns the sizes that came."""

    def limit(tokens: int) -> list[int]:
        original, sizes = IdiomoeTrainer._backward, []

        def backward(trainer: Any, batch: SequenceBatch) -> torch.Tensor:
            loss = original(trainer, batch)  # the worst case: all gradients are there already
            sizes.append(batch.input_ids.numel())
            if sizes[-1] > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss

        monkeypatch.setattr(IdiomoeTrainer, "_backward", backward)
        return sizes

    return limit


def train(data_path: str, folder: str, **settings: Any) -> dict[str, torch.Tensor]:
    """Weights after two epochs."""
    (result,) = api.run(
        "IDIOMoE",
        "cycle",
        settings=TINY
        | {"data_path": data_path, "checkpoint_dir": folder, "epochs": 2, "dropout": 0.0}
        | settings,
    )
    return load_file(Path(result["folder"]) / "model.safetensors")


def test_a_run_goes_on_as_one_of_smaller_batches(
    data_path: str, small_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(micro_batches.logger, "warning", lambda *line: said.append(line))
    whole = train(data_path, "whole", max_batch_tokens=LARGE)
    sizes = small_device(600)
    troubled = train(data_path, "troubled", max_batch_tokens=LARGE)
    ((line, budget),) = said
    assert "out of memory" in line and "\n" not in line
    assert sizes[0] > 2 * 600 and sizes[1] == sizes[0] // 2 > 600  # halved twice, said once
    assert budget <= 600 and max(sizes[2:]) <= budget

    sizes.clear()
    untroubled = train(data_path, "untroubled", max_batch_tokens=budget)
    assert max(sizes) <= budget
    for name, weight in untroubled.items():
        torch.testing.assert_close(troubled[name], weight, rtol=1e-5, atol=1e-6)
    # Adam makes much of rounding; a step skipped or counted twice is 100 times further off.
    for name, weight in whole.items():
        torch.testing.assert_close(troubled[name], weight, rtol=1e-2, atol=2e-3)


def test_a_sequence_that_never_fits_is_one_line(data_path: str, small_device: Any) -> None:
    sizes = small_device(10)
    with pytest.raises(IdiomoeError, match=r"a sequence of \d+ tokens.*lower max_tokens") as error:
        train(data_path, "run")
    assert "\n" not in str(error.value) and sizes[-1] < 100


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_made_ahead_are_cut_too_and_nothing_is_lost(workers: int) -> None:
    loader = make_loader(num_workers=workers)
    loader.set_epoch(1, 0.5)
    wanted = supervised(loader)
    pending: list[SequenceBatch] = []
    learnt: list[list[SequenceBatch]] = []
    failures = 0

    def backward(batch: SequenceBatch) -> torch.Tensor:
        nonlocal failures
        if batch.input_ids.numel() > 400:
            failures += 1
            raise torch.OutOfMemoryError
        pending.append(batch)
        return torch.tensor(len(batch.targets) / batch.item_count)

    steps = MicroBatches(loader, backward, pending.clear)
    for number, batches in enumerate(loader):
        losses = steps.run(number, batches)
        assert sum(losses).item() == pytest.approx(1)  # type: ignore[union-attr]
        learnt.append(pending.copy())
        pending.clear()
    assert supervised(learnt) == wanted  # type: ignore[arg-type]
    assert 0 < failures < 6  # each of them halves; later steps come cut
