"""Cost of item experts: IDIOMoE compared with the same model with one FFN (paper, Table 12).

    python benchmarks/expert_overhead.py --device=cuda

Qwen2.5-0.5B's shape, random weights, 20% item tokens at random places, 11,924 items. A training
step is forward, loss over the catalogue at every item, backward and fused AdamW, in bf16 over
fp32 weights; inference is the trunk and the catalogue's scores after the last token, bf16
weights. The text embedding does not train. The rows:

    dense                 one FFN, trained
    full width            two, the text expert frozen: as many trained parameters as dense
    quarter width         the same, item experts of a quarter of the neurons
    both experts trained  more trained parameters, and so more work for the optimizer
    ..., split            with --split: inference with two separate FFNs instead of the fused
                          kernels of compiled blocks

Each side gets the same treatment: `eager`; `compiled` blocks; or `graph`, compiled blocks and
the whole step replayed as one CUDA graph, which removes the time of kernel launches.

Times are relative to the dense model. Working memory, the peak of a step beyond weights and
optimizer state, is the difference from the dense model relative to its peak. On a CPU, neither
absolute times nor memory are printed.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import torch
from measuring import markdown, peak_bytes, qwen, seconds, where
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from recbole_idiomoe.lm import IdiomoeForCausalLM, TwoExpertFFN
from recbole_idiomoe.lm.compilation import compile_blocks
from recbole_idiomoe.lm.training import halve_frozen

ITEMS, ITEM_SHARE = 11_925, 0.2
SIDES: dict[str, tuple[dict[str, object], str]] = {
    "dense": ({"architecture": "dense"}, "none"),
    "full width": ({}, "text_expert"),
    "quarter width": ({"expert_width": 0.25}, "text_expert"),
    "both experts trained": ({}, "none"),
}
PHASES = {"train": list(SIDES), "infer": list(SIDES)[:3]}
SPLIT = ", split"
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
Batch = tuple[Tensor, Tensor, int]


def make_batch(batch: int, length: int, device: str) -> Batch:
    """Hybrid tokens and their types, both (batch, length), and the number of items."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(1, 151_936, (batch, length), generator=generator)
    items = 151_936 + torch.randint(1, ITEMS, (batch, length), generator=generator)
    chosen = torch.randperm(batch * length, generator=generator)
    is_item = (chosen < ITEM_SHARE * batch * length).view(batch, length)
    input_ids = torch.where(is_item, items, tokens).to(device)
    return input_ids, is_item.to(device), int(is_item.sum())


def training_step(lm: IdiomoeForCausalLM, batch: Batch, device: str) -> Callable[[], Tensor]:
    input_ids, types, item_count = batch
    flat = torch.arange(input_ids.numel(), device=device)
    predicted = flat[types.flatten() & (flat % input_ids.shape[1] != 0)]
    targets = input_ids.flatten()[predicted] - lm.config.item_token_offset
    optimizer = torch.optim.AdamW(
        [parameter for parameter in lm.parameters() if parameter.requires_grad],
        lr=1e-5,
        fused=True,
        capturable=device.startswith("cuda"),
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.split(":")[0], torch.bfloat16), sdpa_kernel(KERNELS):
            states = lm.hidden_states(input_ids, types, item_count=item_count).last_hidden_state
            assert states is not None
            loss = lm.item_loss(states.flatten(0, 1)[predicted - 1], targets)
        loss.backward()
        optimizer.step()
        return loss

    return step


def inference(lm: IdiomoeForCausalLM, batch: Batch, device: str) -> Callable[[], Tensor]:
    input_ids, types, item_count = batch

    @torch.no_grad()
    def step() -> Tensor:
        with sdpa_kernel(KERNELS):
            states = lm.hidden_states(input_ids, types, item_count=item_count).last_hidden_state
        assert states is not None
        return lm.item_logits(states[:, -1])

    return step


def graphed(step: Callable[[], object]) -> Callable[[], object]:
    """Capture ``step`` as one CUDA graph, which uses the same memory in every replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # While a graph is captured, some versions of transformers build a mask for causal attention.
    no_mask = mock.patch("transformers.masking_utils.is_tracing", return_value=False)
    with no_mask, torch.cuda.graph(graph):
        step()
    return graph.replay


def build(side: str, phase: str, given: argparse.Namespace) -> IdiomoeForCausalLM:
    options, frozen = SIDES[side.removesuffix(SPLIT)]
    backbone = qwen(given.tiny, given.device)
    lm = IdiomoeForCausalLM.from_backbone(backbone, ITEMS, **options).train()  # type: ignore[arg-type]
    if phase == "infer":
        return lm.to(torch.bfloat16).eval()
    lm.freeze(frozen)
    lm.backbone.get_input_embeddings().requires_grad_(False)
    halve_frozen(lm)  # as the trainer does
    return lm


class Cost(NamedTuple):
    """The cost of one step."""

    seconds: float
    peak: int
    """Peak memory in bytes, including the model."""
    working: int
    """Peak memory beyond weights and optimizer state, in bytes."""


def measured(side: str, phase: str, given: argparse.Namespace) -> Iterator[Cost]:
    """The costs of a side for each length."""
    lm = build(side, phase, given)
    if given.treatment != "eager":
        compile_blocks(lm.backbone)
    if side.endswith(SPLIT):
        for module in lm.modules():
            if isinstance(module, TwoExpertFFN):
                module.fused = False
    make = training_step if phase == "train" else inference
    for length in given.lengths:
        step = make(lm, make_batch(given.batch, length, given.device), given.device)
        step()  # compiles, and creates the optimizer's state
        lm.zero_grad()
        held = torch.cuda.memory_allocated() if given.device.startswith("cuda") else 0
        peak = peak_bytes(step, given.device)
        run = graphed(step) if given.treatment == "graph" else step
        yield Cost(seconds(run, given.device, given.repeats), peak, peak - held)
        lm.zero_grad()
        del step, run


def row(name: str, ours: Cost, dense: Cost, on_gpu: bool) -> list[str]:
    """A row of the table; absolute values are shown for a GPU only."""
    slower = "" if ours is dense else f"{ours.seconds / dense.seconds - 1:+.1%}"
    if not on_gpu:
        return [name, slower]
    more = "" if ours is dense else f"{(ours.working - dense.working) / dense.peak:+.1%}"
    return [name, f"{1e3 * ours.seconds:.2f}", slower, f"{ours.peak / 2**30:.2f}", more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--treatment", choices=["eager", "compiled", "graph"], default="graph")
    parser.add_argument(
        "--phases", nargs="+", choices=["train", "infer"], default=["train", "infer"]
    )
    parser.add_argument("--split", action="store_true", help="inference not fused, too")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a few neurons, to try the script")
    given = parser.parse_args()
    on_gpu = given.device.startswith("cuda")
    if not on_gpu and given.treatment == "graph":
        given.treatment = "compiled"
    rows = []
    for phase in given.phases:
        found: dict[str, list[Cost]] = {}
        sides = PHASES[phase]
        if given.split and phase == "infer":
            sides = sides + [side + SPLIT for side in sides if side != "dense"]
        for side in sides:
            found[side] = list(measured(side, phase, given))
            torch.compiler.reset()
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()
            for length, ours, dense in zip(given.lengths, found[side], found["dense"], strict=True):
                rows.append(row(f"{phase} {given.batch} x {length}, {side}", ours, dense, on_gpu))
                print(*rows[-1], sep=" | ", flush=True)
    print(f"\n{where(given.device)}; {given.treatment}\n")
    absolute = ["ms", "time", "peak GiB", "working memory"] if on_gpu else ["time"]
    print(markdown(["", *absolute], rows))


if __name__ == "__main__":
    main()
