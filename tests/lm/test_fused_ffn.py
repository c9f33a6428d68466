"""The experts in two kernels: the numbers of two FFNs, and only where they apply.

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
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import (
    IdiomoeForCausalLM,
    TokenRouting,
    TwoExpertFFN,
    compilation,
    experts,
    make_item_expert,
)
from recbole_idiomoe.lm import fused_ffn as fused
from recbole_idiomoe.lm.routing import routed
from tests.lm.decoders import ITEMS, LAYERS, VOCAB, decoder, mixed_batch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")
on_cpu = pytest.param("cpu", torch.float16, marks=interpreted)
on_either = pytest.mark.parametrize(
    ("device", "dtype"),
    [on_cpu, *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in fused.HALF)],
)


@pytest.fixture(autouse=True)
def one_choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU counts as the device, and its interpreter has no clock to choose blocks by."""
    if request.node.get_closest_marker("gpu"):
        return
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    if INTERPRETED:
        choose(monkeypatch, 0)


def choose(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    from recbole_idiomoe.lm import ffn_kernels as kernels

    monkeypatch.setattr(kernels._gate_up, "configs", [kernels.GATE_UP_BLOCKS[blocks]])
    monkeypatch.setattr(kernels._down, "configs", [kernels.DOWN_BLOCKS[blocks]])


def two_experts(width: int, neurons: int, share: float = 1.0) -> TwoExpertFFN:
    """Experts with different weights, the item expert of a share of the neurons; fused."""
    config = Qwen2Config(hidden_size=width, intermediate_size=neurons)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width + neurons)
        text = Qwen2MLP(config)
    item = make_item_expert(text, share, "random", torch.Generator().manual_seed(0), std=0.1)
    ffn = TwoExpertFFN(text, item).eval()
    ffn.fused = True
    return ffn


def types(rows: int, items: int) -> Tensor:
    """(1, rows), ``items`` of them 1, at random places."""
    return (torch.randperm(rows, generator=torch.Generator().manual_seed(rows)) < items)[None]


def run(ffn: nn.Module, hidden: Tensor, token_types: Tensor | None) -> Tensor:
    """The output for a batch of these types; None: of text."""
    with routed(TokenRouting(token_types)):
        return ffn(hidden)


def drawn(rows: int, width: int) -> Tensor:
    return torch.randn(1, rows, width, generator=torch.Generator().manual_seed(rows))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for every call that is left to the kernels; here both FFNs then run."""
    seen: list[int] = []

    def plainly(hidden: Tensor, routing: TokenRouting, text: Any, item: Any) -> Tensor:
        seen.append(1)
        return routing.dispatch(hidden, text, item)

    monkeypatch.setattr(experts, "fused_ffn", plainly)
    return seen


# The numbers.


@on_either
@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize(
    "sizes",  # rows, items among them, width, neurons, the item expert's share of these
    [
        (2, 1, 64, 128, 1.0),
        (130, 129, 64, 128, 0.25),
        (200, 0, 64, 128, 0.5),
        (200, 200, 64, 128, 0.5),
        (201, 70, 40, 72, 1.0),
        (77, 30, 136, 264, 1 / 33),
        (1300, 300, 64, 64, 1.0),
    ],
    ids=str,
)
def test_kernels_give_the_numbers_of_the_two_ffns(
    device: str,
    dtype: torch.dtype,
    blocks: int,
    sizes: tuple[int, int, int, int, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose(monkeypatch, blocks)
    rows, items, width, neurons, share = sizes
    ffn = two_experts(width, neurons, share).to(device, dtype)
    is_item = types(rows, items).to(device)[0]
    hidden = drawn(rows, width)[0].to(device, dtype)
    order = torch.argsort(is_item, stable=True)
    with torch.no_grad():
        weights = fused._weights(ffn.text_expert), fused._weights(ffn.item_expert)
        found = fused.two_expert_ffn(hidden, order, rows - items, *weights)
        exact = copy.deepcopy(ffn).double()
        text, item = exact.text_expert(hidden.double()), exact.item_expert(hidden.double())
    assert found.dtype == dtype
    # Sums are of fp32: only activations and outputs are rounded, each by eps / 2 at most.
    assert error(found, torch.where(is_item[:, None], item, text)) < torch.finfo(dtype).eps


@on_either
def test_under_autocast_weights_are_cast_as_for_the_two_ffns(
    device: str, dtype: torch.dtype
) -> None:
    ffn = two_experts(64, 128, 0.25).to(device)
    ffn.text_expert.to(dtype)  # as a frozen one
    is_item = types(50, 20).to(device)
    hidden = drawn(50, 64).to(device)
    with torch.no_grad(), torch.autocast(device, dtype):
        experts_of = ffn.text_expert, ffn.item_expert
        assert fused.can_fuse(hidden, TokenRouting(is_item), *experts_of)
        found = run(ffn, hidden, is_item)
        ffn.fused = False
        wanted = run(ffn, hidden, is_item)
    assert found.dtype == wanted.dtype == dtype
    # Each rounds for itself: the two FFNs five times on the way, the kernels twice.
    assert error(found, wanted) < 3 * torch.finfo(dtype).eps


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [300, 2048])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_at_full_size_rounding_is_no_worse_than_that_of_the_two_ffns(
    rows: int, share: float
) -> None:
    ffn = two_experts(896, 4864, share).to("cuda", torch.bfloat16)
    is_item = types(rows, rows // 5).cuda()
    hidden = drawn(rows, 896).to("cuda", torch.bfloat16)
    with torch.no_grad():
        found = run(ffn, hidden, is_item)
        ffn.fused = False
        wanted = run(ffn, hidden, is_item)
        exact = run(ffn.double(), hidden.double(), is_item)
    assert error(found, exact) <= error(wanted, exact)


# Where they apply.


class _Adapted(nn.Linear):
    """As an adapter would: a linear map that gives something else."""


CHANGES: dict[str, Callable[[TwoExpertFFN], Any]] = {
    "switched off": lambda ffn: setattr(ffn, "fused", False),
    "training": lambda ffn: ffn.train(),
    "another activation": lambda ffn: setattr(ffn.item_expert, "act_fn", nn.GELU()),
    "an adapter": lambda ffn: setattr(ffn.text_expert, "up_proj", _Adapted(16, 24, bias=False)),
    "a bias": lambda ffn: setattr(ffn.item_expert, "up_proj", nn.Linear(16, 24)),
    "a hook": lambda ffn: ffn.item_expert.register_forward_hook(lambda *_: None),
    "a hook inside": lambda ffn: ffn.text_expert.up_proj.register_forward_pre_hook(lambda *_: None),
    "odd neurons": lambda ffn: setattr(ffn, "item_expert", two_experts(16, 23).item_expert),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_only_what_the_kernels_compute_is_left_to_them(
    change: Callable[[TwoExpertFFN], Any], calls: list[int]
) -> None:
    ffn, hidden = two_experts(16, 24).bfloat16(), drawn(7, 16).bfloat16()
    with torch.no_grad():
        run(ffn, hidden, types(7, 3))
        assert len(calls) == 1
        change(ffn)
        run(ffn.bfloat16(), hidden, types(7, 3))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "token_types", [types(7, 0), types(7, 7), None], ids=["text", "items", "no"]
)
def test_a_batch_of_one_type_needs_no_kernels(token_types: Tensor | None, calls: list[int]) -> None:
    with torch.no_grad():
        run(two_experts(16, 24).bfloat16(), drawn(7, 16).bfloat16(), token_types)
    assert not calls


def test_gradients_and_what_is_not_half_go_the_plain_way(calls: list[int]) -> None:
    ffn = two_experts(16, 24)
    hidden = drawn(7, 16)
    with torch.no_grad():
        run(ffn, hidden, types(7, 3))
    with torch.autocast("cpu", torch.bfloat16):
        run(ffn, hidden, types(7, 3))
        assert not calls
        with torch.no_grad():
            run(ffn, hidden, types(7, 3))
            assert len(calls) == 1
            for elsewhere in (torch.float64, "meta"):  # autocast leaves these as they are
                other = copy.deepcopy(ffn.item_expert).to(elsewhere)
                routing = TokenRouting(types(7, 3))
                assert not fused.can_fuse(hidden, routing, ffn.text_expert, other)


def test_large_batches_are_left_to_the_two_ffns(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "MOST_TOKENS", 6)
    ffn = two_experts(16, 24).bfloat16()
    for tokens, fused_so_far in ((6, 1), (7, 1)):
        with torch.no_grad():
            run(ffn, drawn(tokens, 16).bfloat16(), types(tokens, 3))
        assert len(calls) == fused_so_far


@pytest.mark.parametrize(
    ("family", "wanted"),
    # This llama has biases.
    [("qwen2", LAYERS), ("qwen3", LAYERS), ("mistral", LAYERS)]
    + [(family, 0) for family in ("llama", "gemma", "gpt2", "gpt_neox", "phi")],
)
def test_compiled_swiglu_decoders_are_fused(
    family: str, wanted: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = IdiomoeForCausalLM.from_backbone(decoder(family), ITEMS).bfloat16()
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    with torch.no_grad():
        compilation.compile_blocks(lm.backbone)
        lm.hidden_states(mixed_batch())
        assert not calls  # a CPU has no kernels
        monkeypatch.setattr(compilation, "has_kernels", lambda device: True)
        compilation.compile_blocks(lm.backbone)
        lm.hidden_states(mixed_batch())
    assert len(calls) == wanted


def test_an_order_of_another_batch_is_refused() -> None:
    ffn = two_experts(16, 24).bfloat16()
    with torch.no_grad(), pytest.raises(SettingError, match=r"\(1, 7\) do not fit"):
        run(ffn, drawn(9, 16).bfloat16(), types(7, 3))


# Compiled, and as a CUDA graph.


@on_either
def test_to_a_compiler_the_experts_are_one_operator_for_all_lengths(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return lookup_backend("inductor")(graph, inputs) if device == "cuda" else graph.forward

    compiled = partialmethod(nn.Module.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    monkeypatch.setattr(compilation, "has_kernels", lambda device: True)
    torch.compiler.reset()
    plain = IdiomoeForCausalLM.from_backbone(
        decoder("qwen2"), ITEMS, expert_init="random", expert_width=1 / 3
    ).to(device)
    lm = copy.deepcopy(plain)
    compilation.compile_blocks(lm.backbone)
    for shape in [(3, 9), (2, 7), (5, 12), (4, 20)]:
        input_ids = mixed_batch(*shape).to(device)
        items = int((input_ids >= VOCAB).sum())
        with torch.no_grad(), torch.autocast(device, dtype):
            found, wanted = (
                side.hidden_states(input_ids, item_count=items).last_hidden_state
                for side in (lm, plain)
            )
        assert found is not None and wanted is not None
        assert error(found, wanted) < 5 * torch.finfo(dtype).eps  # of three layers
        compilations.append(len(graphs))
    assert len(set(compilations)) == 1  # inductor may take two attempts at the first
    nodes = graphs[-1].graph.nodes
    operators = [str(node.target) for node in nodes if node.op == "call_function"]
    assert sum("two_expert_ffn" in name for name in operators) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_cuda_graph_gives_the_same_numbers(compiled: bool) -> None:
    torch.compiler.reset()
    ffn = two_experts(64, 128).cuda()
    routing = TokenRouting(types(60, 20).cuda())
    hidden = drawn(60, 64).cuda()
    experts = torch.compile(ffn, dynamic=True, fullgraph=True) if compiled else ffn
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16), routed(routing):
        before = experts(hidden)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = experts(hidden)
        hidden.copy_(hidden.flip(-1))
        graph.replay()
        assert not torch.equal(replayed, before)
        assert torch.equal(replayed, experts(hidden))
