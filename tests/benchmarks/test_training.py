"""The epoch benchmark: its peers do the same work, and its FLOPs are those that are done."""

from __future__ import annotations

import importlib
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from recbole_idiomoe.data.sequence_builder import SequenceBuilder
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.bundled import verified_folder
from tests.helpers import TINY_BACKBONE, sequence_of
from tests.training.cycle import write_cycle

USERS, LENGTH = 60, 8
TRAINED = LENGTH - 2  # one validates, one tests


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmarks' modules, which find each other as scripts do."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    names = ("training", "training_sides", "naive")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def epoch(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that measures one side on a small dataset."""
    data_path = write_cycle(tmp_path / "data" / "amazon-toys", users=USERS, length=LENGTH)
    monkeypatch.chdir(tmp_path)  # RecBole writes beside itself

    def measure(side: str) -> Any:
        options = {"data_path": data_path, "tokenizer": verified_folder(weights=False)}
        given = [f"--{name}={value}" for name, value in options.items()]
        given += ["--tiny", "--steps=1", f"--side={side}", "--setting", "train_batch_size", "8"]
        return scripts.training.measure(scripts.training.read_arguments(given))

    return measure


@pytest.mark.slow
def test_the_sides_predict_the_same_items(scripts: Any, epoch: Any) -> None:
    sides = {name: epoch(name) for name in scripts.training.SIDES}
    ours, naive, trainer = sides.values()
    assert len({side.flops["item softmax"] for side in sides.values()}) == 1
    assert trainer.tokens == ours.tokens + USERS  # the last item is there to carry a label
    assert naive.measured.endswith(f"scaled to {USERS * (TRAINED - 1)} rows")
    # Prefixes of 1 to n items hold (n + 1) / 2 times the items, and n times the instruction.
    assert TRAINED / 2 < naive.tokens / ours.tokens < TRAINED - 1
    assert ours.padding <= trainer.padding < naive.padding
    assert all(side.seconds > 0 and side.utilisation > 0 for side in sides.values())

    on_cpu, on_gpu = (scripts.training.table(sides, on_gpu) for on_gpu in (False, True))
    assert "seconds" not in on_cpu and "seconds an epoch" in on_gpu
    assert f"| {naive.seconds / ours.seconds:.2f} |" in on_cpu


def backbone(attention: str = "sdpa") -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=50, **TINY_BACKBONE | {"num_key_value_heads": 1})
    config._attn_implementation = attention
    return Qwen2ForCausalLM(config)


def test_flops_are_those_of_the_operators(scripts: Any) -> None:
    model, length, items = backbone("eager"), 32, 7
    vectors = torch.randn(items, model.config.hidden_size, requires_grad=True)
    tokens = torch.randint(50, (3, length))
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(tokens, use_cache=False).last_hidden_state
        (hidden[:, -4:].flatten(0, 1) @ vectors.T).sum().backward()
    flops = scripts.training.model_flops(model.config, np.full(3, length), 12, items)
    # Eager attention computes what causality then hides, the other half.
    assert counter.get_total_flops() == pytest.approx(
        sum(flops.values()) + flops["attention"], 0.01
    )


def test_the_naive_model_is_idiomoe(scripts: Any) -> None:
    items, offset = 9, 50
    lm = IdiomoeForCausalLM.from_backbone(backbone(), items, expert_init="random")
    lm.config.item_input_factor = 1.0  # an item enters as it leaves
    builder = SequenceBuilder(
        [[]] + [[item, item + 1, 2 * item] for item in range(1, items)],
        [[offset + item] for item in range(items)],
        offset,
        max_tokens=40,
    )
    fields = {"ITEM_ID_FIELD": "item", "ITEM_LIST_LENGTH_FIELD": "length", "LIST_SUFFIX": "_list"}
    config = defaultdict(str, fields, device=torch.device("cpu"))
    dataset = SimpleNamespace(num=lambda field: items)
    naive = scripts.naive.NaiveIdiomoe(config, dataset, backbone(), builder, pad_token_id=0)
    with torch.no_grad():
        naive.trunk.embed_tokens.weight[offset:] = lm.item_table.rows
        for experts, trained in zip(naive.experts, lm.added, strict=True):
            experts.item_expert.load_state_dict(trained.state_dict())

    histories = [np.array([3, 5, 8]), np.array([1]), np.array([7, 2])]
    rows = Interaction(
        {
            "item_list": torch.tensor([[3, 5, 8, 0], [1, 0, 0, 0], [7, 2, 0, 0]]),
            "length": torch.tensor([3, 1, 2]),
        }
    )
    with torch.no_grad():
        for scores, history in zip(naive(rows), histories, strict=True):
            tokens = torch.from_numpy(sequence_of(builder, history).input_ids)[None]
            hidden = lm.hidden_states(tokens).last_hidden_state[0, -1]
            torch.testing.assert_close(scores[1:], lm.item_logits(hidden)[1:])


def test_sizes_that_do_not_fit_are_passed_over(scripts: Any) -> None:
    def attempt(size: int) -> int:
        if size > 16:
            raise torch.OutOfMemoryError
        return size

    those_that_fit = scripts.training_sides.those_that_fit
    assert list(those_that_fit(attempt, (64, 32, 16, 8))) == [16, 8]
    with pytest.raises(SystemExit, match="not even 32 at once"):
        list(those_that_fit(attempt, (64, 32)))
