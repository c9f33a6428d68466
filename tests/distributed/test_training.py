"""Two processes train what one trains: the same losses, weights and files."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

import recbole_idiomoe
import recbole_idiomoe.lm  # teaches transformers the model type
from recbole_idiomoe.training.state import STATE_FILE
from tests.distributed.ranks import interrupted_in_epoch, runs, started
from tests.training.cycle import TINY, write_cycle

# 17 windows: the last step has one, for two processes. Steps are cut into several batches.
SETTINGS: dict[str, Any] = TINY | {
    "epochs": 2,
    "dropout": 0.0,
    "learning_rate": 0.002,
    "train_batch_size": 16,
    "max_batch_tokens": 300,
    "text_ramp": 1.0,
    "eval_batch_size": 7,
    "clip_grad_norm": {"max_norm": 1.0},
}
# One by one, what the loss, the optimizer and the weights may be made of.
VARIANTS: dict[str, dict[str, Any]] = {
    "soft, averaged": {
        "text_smoothing": 0.2,
        "transition_smoothing": 0.2,
        "ema_decay": 0.9,
        "keep_last": 1,
    },
    "with text, frozen": {
        "text_loss_weight": 0.5,
        "freeze": "attention",
        "query_share": 0.5,
        "item_embedding_dim": 16,
        "activation_checkpointing": True,
    },
    # Its head of text is trained in one process by nothing, and so in two.
    "semantic IDs, untied": {
        "item_tokens": "semantic",
        "semantic_codebook_size": 8,
        "segment_order": "ID text",
        "backbone_args": SETTINGS["backbone_args"] | {"tie_word_embeddings": False},
    },
    "CoVE": {"model": "CoVE"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle", users=17, both_ways=True)


def wanted(data: Path, variant: str = "with text, frozen", **settings: Any) -> dict[str, Any]:
    """Arguments of ``run``."""
    chosen = SETTINGS | VARIANTS[variant] | {"data_path": str(data)} | settings
    model = chosen.pop("model", "IDIOMoE")
    return {"models": model, "datasets": "cycle", "settings": chosen}


def runs_and_norms(*asked: dict[str, Any]) -> tuple[Any, list[float]]:
    """Results, and the norm of the gradients at every step: Adam would hide a wrong factor."""
    norms, original = [], Accelerator.clip_grad_norm_

    def clip_grad_norm_(*args: Any, **options: Any) -> Any:
        norm = original(*args, **options)
        norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        return norm

    Accelerator.clip_grad_norm_ = clip_grad_norm_
    return runs(*asked), norms


def losses(result: dict[str, Any]) -> list[float]:
    state = torch.load(Path(result["folder"]) / STATE_FILE, weights_only=True)
    return [state["train_losses"][epoch] for epoch in range(len(state["train_losses"]))]


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(result["folder"]) / "model.safetensors")


def in_folder(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    return result | {"folder": str(folder / result["folder"])}


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Trained alike but for rounding."""
    np.testing.assert_allclose(losses(one), losses(other), rtol=1e-6)
    assert one["best_valid_result"] == other["best_valid_result"]
    expected = weights(one)
    assert expected.keys() == weights(other).keys()
    for name, weight in weights(other).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def of_one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of every variant, and the ``norms`` on the way."""
    folder = tmp_path_factory.mktemp("one")
    asked = [wanted(data, name) for name in VARIANTS]
    [(results, norms)] = started(1, folder, runs_and_norms, *asked).given()
    found = zip(VARIANTS, results, strict=True)
    return {name: in_folder(result, folder) for name, result in found} | {"norms": norms}


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(
    sharding: str, data: Path, tmp_path: Path, of_one: dict[str, Any]
) -> None:
    asked = [wanted(data, name, sharding=sharding) for name in VARIANTS]
    (first, norms), (second, _) = started(2, tmp_path, runs_and_norms, *asked).given()
    np.testing.assert_allclose(norms, of_one["norms"], rtol=1e-4)
    for name, result, other in zip(VARIANTS, first, second, strict=True):
        assert result["test_result"] == other["test_result"], name
        assert_alike(of_one[name], in_folder(result, tmp_path))
        assert result["device"].startswith("2 x ")

    # Rank 0 wrote what one process writes, once, and nobody anything else.
    folders = sorted((tmp_path / "saved").iterdir())
    assert len(folders) == len(VARIANTS)
    assert len(list((tmp_path / "log").rglob("*.log"))) == len(VARIANTS)
    assert len(list((tmp_path / "log_tensorboard").iterdir())) == len(VARIANTS)
    for name, result in zip(VARIANTS, first, strict=True):
        ours, theirs = (Path(r["folder"]) for r in (in_folder(result, tmp_path), of_one[name]))
        written = sorted(path.relative_to(ours) for path in ours.rglob("*"))
        assert written == sorted(path.relative_to(theirs) for path in theirs.rglob("*"))
        AutoModelForCausalLM.from_pretrained(ours)
        assert len(recbole_idiomoe.load(ours).recommend(["i3"], k=3)) == 3


def test_a_run_goes_on_with_more_or_fewer_processes(
    data: Path, tmp_path: Path, of_one: dict[str, Any]
) -> None:
    cut_off = partial(interrupted_in_epoch, 1)
    arguments = wanted(data, "soft, averaged")
    begun_by_two = [
        arguments | {"settings": arguments["settings"] | {"sharding": sharding}}
        for sharding in ("ddp", "fsdp2")
    ]
    two, one = tmp_path / "two", tmp_path / "one"
    begun = started(2, two, partial(runs, patches=[cut_off] * 2), *begun_by_two).given()
    assert begun == [[None, None]] * 2
    assert started(1, one, partial(runs, patches=[cut_off]), arguments).given() == [[None]]

    ended_by_one = started(1, two, runs, *({"resume": f} for f in sorted(two.glob("saved/*"))))
    [folder] = one.glob("saved/*")
    settings = {"sharding": "fsdp2"}
    ended_by_two = started(2, one, runs, {"resume": folder, "settings": settings})
    for result in ended_by_one.given()[0] + ended_by_two.given()[0]:
        assert result["epochs"] == 2
        assert_alike(of_one["soft, averaged"], in_folder(result, tmp_path))


@pytest.mark.slow
def test_random_numbers_go_on_where_they_were(data: Path, tmp_path: Path) -> None:
    patches = [nullcontext, partial(interrupted_in_epoch, 1)]
    asked = [wanted(data, dropout=0.3, checkpoint_dir=name) for name in ("straight", "broken")]
    straight, _ = started(2, tmp_path, partial(runs, patches=patches), *asked).given()[0]
    [folder] = (tmp_path / "broken").iterdir()
    [resumed] = started(2, tmp_path, runs, {"resume": folder}).given()[0]
    expected = weights(in_folder(straight, tmp_path))
    for name, weight in weights(in_folder(resumed, tmp_path)).items():
        assert torch.equal(weight, expected[name])
