"""Peak memory and time of the item loss, compared with plain cross entropy.

    python benchmarks/item_loss.py --items=500000 --positions=2048 --width=64

Forward and backward of `IdiomoeForCausalLM.item_loss` and of `F.cross_entropy(h @ E.T, items)` on
the same hidden states and item vectors, each in its own process. Memory is the peak beyond these
inputs, including gradients. The defaults take 7 GB on a CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

SIDES = ("plain", "item_loss")


def measure(side: str, items: int, positions: int, width: int, device: str) -> dict[str, float]:
    """Peak bytes beyond the inputs, seconds, and the loss, of one side in this process."""
    # Imported here, since the peak memory of a process starts at its parent's.
    import psutil
    import torch
    from torch.nn import functional as F
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from recbole_idiomoe.lm import IdiomoeForCausalLM

    backbone = Qwen2Config(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    model = IdiomoeForCausalLM.from_backbone(Qwen2ForCausalLM(backbone), items).to(device)
    torch.manual_seed(0)
    hidden = torch.randn(positions, width, device=device, requires_grad=True)
    targets = torch.randint(1, items, (positions,), device=device)

    def loss_and_gradients(first: int) -> float:
        states, chosen = hidden[:first], targets[:first]
        if side == "plain":
            # Row 0 is padding and not a candidate.
            loss = F.cross_entropy(states @ model.item_table.rows[1:].T, chosen - 1)
        else:
            loss = model.item_loss(states, chosen)
        loss.backward()
        return loss.item()

    loss_and_gradients(1)  # libraries and kernels load
    model.zero_grad()
    hidden.grad = None
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    loss = loss_and_gradients(positions)
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    if on_gpu:
        peak = torch.cuda.max_memory_allocated(device)
        name = torch.cuda.get_device_name(device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        name = f"CPU, {torch.get_num_threads()} threads"
    where = f"{name}, torch {torch.__version__}"
    return {"bytes": peak - before, "seconds": seconds, "loss": loss, "where": where}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = (given.items, given.positions, given.width)
    if given.side:
        print(json.dumps(measure(given.side, *sizes, given.device)))
        return
    sides = {}
    for side in SIDES:
        command = [sys.executable, *sys.argv, f"--side={side}"]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        sides[side] = json.loads(output.splitlines()[-1])
    plain, ours = (sides[side] for side in SIDES)
    print("{:,} items x {:,} positions x width {} ({})".format(*sizes, ours["where"]))
    print("| item_loss against plain cross entropy | |\n|---|---|")
    print(f"| peak memory | {plain['bytes'] / ours['bytes']:.1f} times less |")
    print(f"| time | x {ours['seconds'] / plain['seconds']:.2f} |")
    print(f"| difference of the losses | {abs(ours['loss'] - plain['loss']):.1e} nats |")


if __name__ == "__main__":
    main()
