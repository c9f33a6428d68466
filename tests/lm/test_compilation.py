"""Compiled blocks: the same numbers, and no compilation for another length."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import nn

from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.compilation import compile_blocks
from recbole_idiomoe.lm.training import checkpoint_blocks
from tests.lm.decoders import ITEMS, VOCAB, decoder, mixed_batch

SHAPES = [(3, 9), (2, 7), (5, 12), (4, 20)]


def outcome(lm: IdiomoeForCausalLM, batch: int, length: int) -> list[torch.Tensor]:
    """Hidden states, and in training the gradients of all weights."""
    input_ids = mixed_batch(batch, length).to(lm.device)
    types = input_ids >= VOCAB
    lm.zero_grad()
    with torch.set_grad_enabled(lm.training):
        states = lm.hidden_states(input_ids, types, segments=types.long().cumsum(1))
        assert states.last_hidden_state is not None
        if lm.training:
            states.last_hidden_state.square().mean().backward()
    gradients = [p.grad.clone() for p in lm.parameters() if p.grad is not None]
    return [states.last_hidden_state.detach(), *gradients]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Counts compilations, which stop before machine code is made."""
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    compiled = partialmethod(nn.Module.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    torch.compiler.reset()
    return seen


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2", {}),
        ("qwen2", {"attention": "intra_inter"}),
        ("qwen2", {"architecture": "mot"}),
        ("gpt2", {"expert_width": 0.5}),
        ("gemma", {"architecture": "moa"}),
    ],
    ids=str,
)
def test_one_compilation_serves_all_layers_and_lengths(
    family: str, options: dict[str, Any], compilations: list[Any]
) -> None:
    plain = IdiomoeForCausalLM.from_backbone(
        decoder(family), ITEMS, expert_init="random", **options
    )
    lm = copy.deepcopy(plain)
    compile_blocks(lm.backbone)
    kinds = 2 if "attention" in options else 1  # its layers take turns with two masks
    for training in (True, False):
        compilations.clear()
        for batch, length in SHAPES:
            wanted = outcome(plain.train(training), batch, length)
            torch.testing.assert_close(outcome(lm.train(training), batch, length), wanted)
        assert len(compilations) == kinds
    assert lm.state_dict().keys() == plain.state_dict().keys()


def test_blocks_that_are_computed_again_are_compiled_but_once(compilations: list[Any]) -> None:
    plain = IdiomoeForCausalLM.from_backbone(decoder("qwen2"), ITEMS).train()
    lm = copy.deepcopy(plain)
    checkpoint_blocks(lm.backbone)
    compile_blocks(lm.backbone)
    for batch, length in SHAPES:
        torch.testing.assert_close(outcome(lm, batch, length), outcome(plain, batch, length))
    assert len(compilations) == 1


def test_another_thread_needs_no_compilation_for_another_length(compilations: list[Any]) -> None:
    """torch keeps the settings of the compiler for each thread."""
    plain = IdiomoeForCausalLM.from_backbone(decoder("qwen2"), ITEMS, expert_init="random")
    lm = copy.deepcopy(plain)
    compile_blocks(lm.backbone)
    with ThreadPoolExecutor(1) as elsewhere:
        for batch, length in [(4, 4), *SHAPES]:  # 4 is also the width of a head
            found = elsewhere.submit(outcome, lm, batch, length).result()
            torch.testing.assert_close(found, outcome(plain, batch, length))
    assert len(compilations) == 1


def test_with_a_cache_blocks_are_not_compiled(compilations: list[Any]) -> None:
    """Each layer's part of a cache would need a compilation of its own."""
    plain = IdiomoeForCausalLM.from_backbone(decoder("qwen2"), ITEMS, expert_init="random")
    lm = copy.deepcopy(plain)
    compile_blocks(lm.backbone)
    prompt = mixed_batch()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "vocabulary": "hybrid"}
    assert torch.equal(lm.generate(prompt, **options), plain.generate(prompt, **options))
    assert not compilations


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["causal", "intra_inter"])
def test_machine_code_gives_the_same_numbers(attention: str) -> None:
    torch.compiler.reset()
    plain = IdiomoeForCausalLM.from_backbone(
        decoder("qwen2"), ITEMS, expert_init="random", attention=attention
    ).cuda()
    lm = copy.deepcopy(plain)
    compile_blocks(lm.backbone)
    for training in (True, False):
        for batch, length in SHAPES:
            wanted = outcome(plain.train(training), batch, length)
            found = outcome(lm.train(training), batch, length)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
