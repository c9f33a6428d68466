"""The experts in two kernels: the same numbers as the plain path, and only where they apply.

Without a GPU the kernels run in Triton's interpreter, where Triton is installed (3.6's does not
know numpy 2.4's scalars, so with an older numpy, nor products in bf16):

    TRITON_INTERPRET=1 python -m pytest tests/lm/test_fused_ffn.py
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partialmethod
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from recbole_idiomoe.lm import IdiomoeForCausalLM, TokenRouting, TwoExpertFFN, make_item_expert
from recbole_idiomoe.lm import fused_ffn as fused
from recbole_idiomoe.lm.compilation import compile_blocks

from .decoders import ITEMS, LAYERS, VOCAB, decoder, mixed_batch, text_batch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")
on_either = pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.gpu)],
)


def two_experts(
    width: int, neurons: int, share: float = 1.0, dtype: torch.dtype = torch.float32
) -> TwoExpertFFN:
    """Experts with different weights, the item expert of a share of the neurons."""
    config = Qwen2Config(hidden_size=width, intermediate_size=neurons)
    generator = torch.Generator().manual_seed(width + neurons)
    text = Qwen2MLP(config)
    item = make_item_expert(text, share, "random", generator, std=0.1)
    return TwoExpertFFN(text, item, TokenRouting()).to(dtype).eval()


def types(rows: int, items: int, seed: int = 0) -> Tensor:
    """(1, rows), ``items`` of them 1, at random places."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(rows, generator=generator) < items)[None]


def plainly(ffn: TwoExpertFFN, hidden: Tensor) -> Tensor:
    return ffn.routing.dispatch(hidden, ffn.text_expert, ffn.item_expert)


def fusedly(ffn: TwoExpertFFN, hidden: Tensor) -> Tensor:
    return fused.fused_ffn(hidden, ffn.routing, ffn.text_expert, ffn.item_expert)


def states(lm: IdiomoeForCausalLM, input_ids: Tensor) -> Tensor:
    found = lm.hidden_states(input_ids, item_count=int((input_ids >= VOCAB).sum()))
    assert found.last_hidden_state is not None
    return found.last_hidden_state


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What came out of the kernels, call by call."""
    seen: list[Tensor] = []

    def counted(*args: Any) -> Tensor:
        seen.append(fused_ffn(*args))
        return seen[-1]

    fused_ffn = fused.fused_ffn
    monkeypatch.setattr("recbole_idiomoe.lm.experts.fused_ffn", counted)
    return seen


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decides as for a GPU."""
    monkeypatch.setattr(fused, "available", True)
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    monkeypatch.setattr(fused, "DTYPES", (torch.float32,))


# Decision.


def test_a_cpu_runs_both_experts_as_they_are(calls: list[Tensor]) -> None:
    ffn = two_experts(16, 24, dtype=torch.bfloat16)
    ffn.routing.set(types(7, 3))
    hidden = torch.randn(1, 7, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(ffn(hidden), plainly(ffn, hidden))
    assert not calls


class _Doubled(nn.Linear):
    """As an adapter would: a linear map that gives something else."""


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda ffn: None, True),
        (lambda ffn: setattr(ffn.item_expert, "act_fn", nn.GELU()), False),
        (lambda ffn: setattr(ffn.text_expert, "up_proj", _Doubled(16, 24, bias=False)), False),
        (lambda ffn: setattr(ffn.item_expert, "up_proj", nn.Linear(16, 24)), False),
        (lambda ffn: ffn.item_expert.double(), False),
        (lambda ffn: ffn.item_expert.to("meta"), False),
        (lambda ffn: ffn.routing.set(types(7, 0)), False),
        (lambda ffn: ffn.routing.set(types(7, 7)), False),
        (lambda ffn: ffn.routing.clear(), False),
        (lambda ffn: ffn.routing.set(types(fused.MOST_ROWS + 1, 3)), False),
    ],
    ids=[
        "plain",
        "another activation",
        "an adapter",
        "a bias",
        "another dtype",
        "elsewhere",
        "text alone",
        "items alone",
        "no batch",
        "a large batch",
    ],
)
def test_only_what_the_kernels_compute_is_left_to_them(
    change: Callable[[TwoExpertFFN], None],
    wanted: bool,
    on_cpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ffn = two_experts(16, 24)
    ffn.routing.set(types(7, 3))
    change(ffn)
    asked = torch.randn(1, 7, 16), ffn.routing, ffn.text_expert, ffn.item_expert
    assert not fused.applies(*asked)  # there are gradients
    with torch.no_grad():
        assert fused.applies(*asked) is wanted
        assert not fused.applies(asked[0].bfloat16(), *asked[1:])
        monkeypatch.setattr(fused, "available", False)
        assert not fused.applies(*asked)


def test_ffns_with_another_formula_are_left_alone(on_cpu: None) -> None:
    fitting = []
    for family in ("qwen2", "qwen3", "llama", "mistral", "gemma", "gpt2", "gpt_neox", "phi"):
        lm = IdiomoeForCausalLM.from_backbone(decoder(family), ITEMS)
        ffn = next(module for module in lm.modules() if isinstance(module, TwoExpertFFN))
        ffn.routing.set(types(7, 3))
        with torch.no_grad():
            hidden = torch.randn(1, 7, 16)
            if fused.applies(hidden, ffn.routing, ffn.text_expert, ffn.item_expert):
                fitting.append(family)
    assert fitting == ["qwen2", "qwen3", "mistral"]  # this llama has biases


# Kernels.


def check(
    device: str,
    sizes: tuple[int, int, int, int, float],
    gate_up: int = 0,
    down: int = 0,
) -> None:
    """Kernels of the given blocks against the plain path, in fp32.

    Args:
        sizes: rows, items among them, width, neurons, and the item expert's share of those.
    """
    from recbole_idiomoe.lm import ffn_kernels as kernels

    rows, items, width, neurons, share = sizes
    ffn = two_experts(width, neurons, share).to(device)
    ffn.routing.set(types(rows, items, seed=rows).to(device))
    hidden = torch.randn(1, rows, width, generator=torch.Generator().manual_seed(rows)).to(device)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(kernels._gate_up, "configs", [kernels.GATE_UP_BLOCKS[gate_up]])
        patch.setattr(kernels._down, "configs", [kernels.DOWN_BLOCKS[down]])
        wanted = plainly(ffn, hidden)
        torch.testing.assert_close(fusedly(ffn, hidden), wanted, rtol=1e-5, atol=1e-5)


@on_either
@pytest.mark.parametrize(
    "sizes",
    [
        (2, 1, 64, 128, 1.0),
        (130, 1, 64, 128, 1.0),
        (130, 129, 64, 128, 0.25),
        (200, 70, 40, 72, 1.0),
        (200, 70, 130, 200, 0.25),
        (65, 33, 1, 1, 1.0),
        (150, 30, 16, 24, 0.01),
        (1300, 300, 64, 64, 1.0),
    ],
    ids=str,
)
def test_kernels_give_the_same_numbers(
    device: str, sizes: tuple[int, int, int, int, float]
) -> None:
    check(device, sizes)


@interpreted
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_kernels_give_the_same_numbers_at_any_size(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 300))
    items = data.draw(st.integers(1, rows - 1))
    width, neurons = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))
    check("cpu", (rows, items, width, neurons, data.draw(st.sampled_from([1.0, 0.5, 0.25]))))


@interpreted
def test_blocks_of_any_size_give_the_same_numbers() -> None:
    from recbole_idiomoe.lm import ffn_kernels as kernels

    for index in range(len(kernels.GATE_UP_BLOCKS)):
        check("cpu", (300, 90, 100, 270, 0.5), gate_up=index)
    for index in range(len(kernels.DOWN_BLOCKS)):
        check("cpu", (300, 90, 100, 270, 0.5), down=index)


@interpreted
def test_decoder_blocks_take_the_kernels_for_one_operator(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One compilation for all layers and lengths, with the numbers of the plain path."""
    from recbole_idiomoe.lm import ffn_kernels as kernels

    monkeypatch.setattr(kernels._gate_up, "configs", kernels.GATE_UP_BLOCKS[:1])
    monkeypatch.setattr(kernels._down, "configs", kernels.DOWN_BLOCKS[:1])
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = partialmethod(nn.Module.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    torch.compiler.reset()
    plain = IdiomoeForCausalLM.from_backbone(
        decoder("qwen2"), ITEMS, expert_init="random", expert_width=0.5
    )
    lm = copy.deepcopy(plain)
    compile_blocks(lm.backbone)
    for batch, length in [(3, 9), (2, 7), (5, 12), (4, 20)]:
        input_ids = mixed_batch(batch, length)
        with torch.no_grad():
            found = states(lm, input_ids)
            with monkeypatch.context() as patch:
                patch.setattr(fused, "available", False)
                wanted = states(plain, input_ids)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    [graph] = graphs
    operators = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("two_expert_ffn" in name for name in operators) == 1


def test_an_order_of_another_batch_is_refused(on_cpu: None) -> None:
    ffn = two_experts(16, 24)
    ffn.routing.set(types(7, 3))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"routing\.set"):
        ffn(torch.randn(1, 9, 16))


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [2048, 777])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_bf16_is_as_near_to_fp32_as_the_plain_path(rows: int, share: float) -> None:
    ffn = two_experts(896, 4864, share).cuda()
    ffn.routing.set(types(rows, rows // 5).cuda())
    hidden = torch.randn(1, rows, 896, device="cuda").bfloat16()
    with torch.no_grad():
        half = copy.deepcopy(ffn).bfloat16()
        half.routing = ffn.routing
        exact = plainly(half.float(), hidden.float())
        half = half.bfloat16()  # the same weights: they were bf16 already
        asked = hidden, ffn.routing, half.text_expert, half.item_expert
        assert fused.applies(*asked)
        ours, theirs = fusedly(half, hidden).float(), plainly(half, hidden).float()
    error = (ours - exact).norm() / exact.norm()
    assert error < 1e-2
    assert error < 1.2 * (theirs - exact).norm() / exact.norm()


def half_precision_lm() -> IdiomoeForCausalLM:
    lm = IdiomoeForCausalLM.from_backbone(decoder("qwen2"), ITEMS, expert_init="random")
    return lm.to("cuda", torch.bfloat16).eval()


@pytest.mark.gpu
def test_compiled_blocks_give_the_same_numbers() -> None:
    torch.compiler.reset()
    lm = half_precision_lm()
    input_ids = mixed_batch(5, 12).cuda()
    with torch.no_grad():
        wanted = states(lm, input_ids)
        compile_blocks(lm.backbone)
        # Fused norms round less.
        torch.testing.assert_close(states(lm, input_ids), wanted, rtol=0.1, atol=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_gives_the_same_numbers(compiled: bool) -> None:
    torch.compiler.reset()
    ffn = two_experts(64, 128, dtype=torch.bfloat16).cuda()
    ffn.routing.set(types(60, 20).cuda())
    hidden = torch.randn(1, 60, 64, device="cuda", dtype=torch.bfloat16)
    run = torch.compile(ffn, dynamic=True, fullgraph=True) if compiled else ffn
    with torch.no_grad():
        assert fused.applies(hidden, ffn.routing, ffn.text_expert, ffn.item_expert)
        wanted = run(hidden)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = run(hidden)
        hidden.copy_(hidden.flip(-1))
        graph.replay()
        assert not torch.equal(replayed, wanted)
        assert torch.equal(replayed, run(hidden))


@pytest.mark.gpu
def test_the_plain_path_stays_where_it_must(calls: list[Tensor]) -> None:
    lm = half_precision_lm()
    input_ids = mixed_batch(3, 9).cuda()
    states(lm, input_ids)  # gradients
    with torch.no_grad():
        lm.train()
        states(lm, input_ids)
        lm.eval().float()
        with torch.autocast("cuda", torch.bfloat16):
            states(lm, input_ids)
        lm.bfloat16()
        states(lm, text_batch(3, 9).cuda())
        ffn = next(module for module in lm.modules() if isinstance(module, TwoExpertFFN))
        hidden = torch.randn(3, 9, 16, device="cuda", dtype=torch.bfloat16)
        assert torch.equal(ffn(hidden), ffn.text_expert(hidden))
        assert not calls
        states(lm, input_ids)
    assert len(calls) == LAYERS
