"""The soak sees what a process keeps, and our runs keep nothing."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from recbole_idiomoe.api import run
from recbole_idiomoe.lm.bundled import verified_folder
from recbole_idiomoe.lm.vocabulary import encode_text
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from tests.training.cycle import TINY, write_cycle

CYCLES = 6
kept: list[Any] = []
PLANTED: dict[str, Callable[[], object]] = {
    "tensors": lambda: torch.zeros(10),
    "open files": partial(os.open, os.devnull, os.O_RDONLY),
    "temporary files": lambda: Path("tmp", str(len(kept))).touch(),
    "host MiB": lambda: bytearray(os.urandom(1 << 20) * 16),
}


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield importlib.import_module("soak")
    kept.clear()
    for handler in logging.getLogger().handlers[:]:  # RecBole's, which write to this test's stderr
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    data = write_cycle(tmp_path / "data" / "cycle", users=20)
    return TINY | {"data_path": str(data), "epochs": 1, "state": "warning"}


def grown(soak: Any, readings: list[Any]) -> set[str]:
    """What grows; it takes more cycles than these until memory is level."""
    return set(soak.growing(readings)) - {"host MiB", "heap MiB"}


def test_nothing_grows_from_run_to_run(soak: Any, settings: dict[str, Any]) -> None:
    def cycle() -> None:
        for model, own in {"IDIOMoE": {}, "SASRecCE": {"hidden_size": 16}}.items():
            (result,) = run(model, "cycle", settings=settings | own)
            soak.recommend(result)

    readings = soak.soak_runs(cycle, Path.cwd(), lambda done: done < CYCLES)
    assert len(readings) == CYCLES and not grown(soak, readings)
    assert readings[-1]["log KiB"] > 1 and readings[-1]["checkpoints KiB"] > 100


@pytest.mark.parametrize("name", PLANTED)
def test_what_runs_keep_is_seen(
    name: str, soak: Any, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tmp").mkdir()

    def cycle() -> None:
        run("SASRecCE", "cycle", settings=settings | {"hidden_size": 16})
        kept.append(PLANTED[name]())

    readings = soak.soak_runs(cycle, Path.cwd(), lambda done: done < CYCLES)
    assert name in soak.growing(readings) and grown(soak, readings) <= {name}
    assert soak.report({"runs": readings}) is True
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Grows: "))
    assert f"{name} (runs)" in line


def test_nothing_grows_from_epoch_to_epoch(
    soak: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def soaked() -> list[Any]:
        return soak.soak_epochs(
            lambda endless: run("IDIOMoE", "cycle", settings=settings | endless),
            Path.cwd(),
            lambda done: done < CYCLES,
        )

    readings = soaked()
    assert len(readings) == CYCLES and not grown(soak, readings)
    with monkeypatch.context() as patch:
        patch.setattr(IdiomoeTrainer, "_report", lambda *_: kept.append(torch.zeros(10)))
        assert grown(soak, soaked()) == {"tensors"}


def test_tokenizers_that_are_gone_hold_no_memory(soak: Any) -> None:
    if not soak.heap():
        pytest.skip("this C library does not tell what malloc gave")
    folder = verified_folder(weights=False)
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), (500, 8, 7))
    texts = [" ".join(map("".join, words)) for words in letters]

    def heap() -> float:
        encode_text(AutoTokenizer.from_pretrained(folder), texts)
        return float(soak.heap() / 2**20)

    heap()
    before = heap()
    assert max(heap() for _ in range(5)) < before + 2  # 0.8 MiB each, if it was kept
