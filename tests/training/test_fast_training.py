"""What makes training faster or smaller, against training without it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recbole_idiomoe import api
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.decoder import backbone_ffns
from recbole_idiomoe.lm.training import halve_frozen
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.recommend import load
from recbole_idiomoe.training import trainer
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from tests.lm.decoders import ITEMS, decoder
from tests.training.cycle import TINY, write_cycle


@pytest.fixture
def data_path(tmp_path: Path) -> str:
    return str(write_cycle(tmp_path / "data" / "cycle"))


def train(data_path: str, folder: Path, **settings: Any) -> Path:
    """The run's folder, after two epochs."""
    where = {"data_path": data_path, "checkpoint_dir": str(folder), "epochs": 2, "dropout": 0.0}
    (result,) = api.run("IDIOMoE", "cycle", settings=TINY | where | settings)
    return Path(result["folder"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_frozen_weights_in_bfloat16_change_no_bit(
    data_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # idiom-mini's weights, as most checkpoints', are exactly bfloat16.
    settings = {"backbone": "bundled", "backbone_args": None, "precision": "bf16"}
    settings |= {"freeze": "text_expert", "epochs": 1}
    halved = train(data_path, tmp_path / "halved", **settings)
    monkeypatch.setattr(trainer, "halve_frozen", lambda lm: None)
    whole = train(data_path, tmp_path / "whole", **settings)
    found, wanted = weights(halved), weights(whole)
    halves = {name for name, weight in found.items() if weight.dtype == torch.bfloat16}
    assert len(halves) == 6 * 3 and all("text_expert" in name for name in halves)
    for name, weight in wanted.items():
        assert torch.equal(found[name].float(), weight), name
    one, other = load(halved), load(whole)
    assert one.catalog_lm is not None
    assert {weight.dtype for weight in one.catalog_lm.lm.parameters()} == {torch.float32}
    assert one.recommend(["i1", "i2"]) == other.recommend(["i1", "i2"])


def test_weights_that_train_or_would_lose_by_it_stay_as_they_are() -> None:
    lm = IdiomoeForCausalLM.from_backbone(decoder("qwen2"), ITEMS)
    lm.freeze("text_expert")
    halve_frozen(lm)  # random weights of float32
    assert {weight.dtype for weight in lm.parameters()} == {torch.float32}
    text = {weight for ffn in backbone_ffns(lm.backbone) for weight in ffn.parameters()}
    for weight in lm.parameters():
        weight.data = weight.data.bfloat16().float()
    halve_frozen(lm)
    assert {weight.dtype for weight in text} == {torch.bfloat16}
    assert {weight.dtype for weight in set(lm.parameters()) - text} == {torch.float32}


@pytest.mark.parametrize(
    "settings", [{"activation_checkpointing": True}, {"attn_implementation": "eager"}], ids=str
)
def test_other_ways_to_compute_train_alike(
    settings: dict[str, Any], data_path: str, tmp_path: Path
) -> None:
    usual = weights(train(data_path, tmp_path / "usual"))
    other = weights(train(data_path, tmp_path / "other", **settings))
    for name, weight in usual.items():  # each may have moved by 0.04
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "device", "width", "compiled"),
    [
        (None, "cuda", 512, True),
        (None, "cuda", 256, False),
        (True, "cuda", 256, True),
        (False, "cuda", 512, False),
        (True, "cpu", 512, False),
    ],
)
def test_large_backbones_are_compiled_on_a_gpu(
    given: bool | None, device: str, width: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(trainer, "compile_blocks", seen.append)
    backbone = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    stub: Any = SimpleNamespace(
        settings=LanguageModelOptions(compile=given),
        device=torch.device(device),
        catalog_lm=SimpleNamespace(lm=SimpleNamespace(backbone=backbone), uses_bf16=False),
    )
    IdiomoeTrainer._make_fast(stub)
    assert seen == ([backbone] if compiled else [])
