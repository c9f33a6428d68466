"""Training time of an epoch of amazon-toys at Qwen2.5-0.5B's shape, in three ways.

    python benchmarks/training.py --data_path=dataset --tokenizer=FOLDER --device=cuda

The sides, each in its own process: random weights in float32, bf16 autocast, AdamW, all weights
trained, no dropout, every sequence with its text.

- ours: the trainer, loader and model of a run of IDIOMoE; a whole epoch, after a warm-up.
- naive: RecBole's trainer on RecBole's rows, one for every prefix of a history, each padded to
  1024 tokens; two FFNs and boolean masks in every layer (naive.py); 64, 32, 16 or 8 rows in a step,
  the most that fit. All steps take equally long: a few are measured and scaled to all rows.
- trainer: transformers' Trainer and its defaults on a dense model whose vocabulary has grown by
  the items; the histories of ours in random order, padded per batch; as many to an optimizer step
  as ours, in micro-batches of 32, 16 or 8, the fastest of those that fit (8 is its default). A
  random sample of histories is measured and scaled to the tokens of all.

Model FLOP utilisation (MFU) is the FLOPs of an epoch's tokens, without padding, divided by its
time and by the rate of a large bf16 matrix product on the same device. FLOPs are

    6 L P per token  +  6 L d T^2 per sequence of T tokens  +  6 d N per predicted item

with L blocks; P weights in a block's projections and in the one FFN that a token passes; width d;
N items. The second term is causal attention: 12 L d T / 2 per token.

Texts are cut at 64 tokens, which affects few of them. The package's default for amazon-toys, chosen
for its small backbone, is --setting max_item_text_tokens 16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import markdown, matrix_rate, qwen, take_settings, where
from training_sides import hf_trainer, naive, ours, profiled

from recbole_idiomoe.config.run_config import let_gpu_memory_grow

SIDES = {"ours": ours, "naive": naive, "trainer": hf_trainer}


@dataclass
class Side:
    """The measures of one side's epoch, for the table."""

    seconds: float
    tokens: int
    """Tokens of an epoch, without padding."""
    padding: float
    """Share of padding in the computed tokens."""
    flops: dict[str, float]
    """FLOPs of the model for the tokens of an epoch, by part."""
    utilisation: float
    measured: str
    where: str

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def model_flops(config: Any, lengths: np.ndarray, predictions: int, items: int) -> dict[str, float]:
    """FLOPs of forward and backward by part, by the formula in the module's docstring.

    Args:
        config: configuration of a Qwen2 model.
        lengths: tokens of each sequence, (sequences,).
        predictions: number of predicted items in all sequences.
        items: number of candidates of each prediction.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    key_width = width // config.num_attention_heads * config.num_key_value_heads
    block = 2 * width**2 + 2 * width * key_width + 3 * width * config.intermediate_size
    return {
        "trunk": 6.0 * layers * block * float(lengths.sum()),
        "attention": 6.0 * layers * width * float(np.square(lengths, dtype=float).sum()),
        "item softmax": 6.0 * width * items * predictions,
    }


def measure(given: argparse.Namespace) -> Side:
    """Measure one side in this process."""
    epoch = SIDES[given.side](given)
    flops = model_flops(
        qwen(given.tiny, "meta").config, epoch.lengths, epoch.predictions, epoch.items
    )
    rate = matrix_rate(given.device, 8192 if given.device == "cuda" else 1024)
    return Side(
        seconds=float(epoch.seconds),
        tokens=int(epoch.lengths.sum()),
        padding=float(epoch.padding),
        flops=flops,
        utilisation=float(sum(flops.values()) / epoch.seconds / rate),
        measured=epoch.measured,
        where=where(given.device),
    )


def table(sides: dict[str, Side], on_gpu: bool) -> str:
    """The sides relative to the first one; times are shown for a GPU only."""
    base_name, base = next(iter(sides.items()))
    columns: dict[str, Callable[[Side], str]] = {
        f"times {base_name}": lambda side: f"{side.seconds / base.seconds:.2f}",
        "tokens": lambda side: f"{side.tokens / 1e6:.2f} M",
        "padding": lambda side: f"{side.padding:.1%}",
        f"tokens/s, {base_name} = 1": lambda side: f"{side.speed / base.speed:.3f}",
        "MFU": lambda side: f"{side.utilisation:.1%}",
        "measured": lambda side: side.measured,
    }
    if on_gpu:
        columns = {
            "seconds an epoch": lambda side: f"{side.seconds:.1f}",
            "tokens/s": lambda side: f"{side.speed:,.0f}",
        } | columns
    rows = [[name, *(show(side) for show in columns.values())] for name, side in sides.items()]
    return markdown(["side", *columns], rows)


def profile_table(spent: dict[str, float]) -> str:
    """Milliseconds in a step, and shares of the GPU's busy time, by kind of kernel."""
    kinds = {kind: value for kind, value in spent.items() if kind != "a step"}
    busy = sum(kinds.values())
    rows = [[kind, f"{1e3 * value:.1f}", f"{value / busy:.1%}"] for kind, value in kinds.items()]
    rows += [["all kernels", f"{1e3 * busy:.1f}", ""]]
    rows += [["a step, not profiled", f"{1e3 * spent['a step']:.1f}", ""]]
    return markdown(["kernels", "ms a step", "share"], rows)


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True, help="folder of amazon-toys/")
    parser.add_argument("--tokenizer", required=True, help="folder of Qwen2.5's")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--side", choices=SIDES, help="that one alone")
    parser.add_argument("--steps", type=int, help="to measure (default: ours all, others 8)")
    parser.add_argument("--warmup", type=int, default=20, help="steps of ours (default: 20)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, few users, 1 step")
    take_settings(parser, "the package, for all sides")
    parser.add_argument(
        "--profile", action="store_true", help="where the steps of ours go, by kind of kernel"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(shape="0.5b")
    given = parser.parse_args(arguments)
    if given.tiny:
        given.steps, given.warmup = given.steps or 1, 1
    return given


def main() -> None:
    given = read_arguments()
    if given.here:
        print(json.dumps(asdict(measure(given))))
        return
    let_gpu_memory_grow()  # for all sides, as in a run of this package
    if given.profile:
        print(f"{where(given.device)}\n\n    python {' '.join(sys.argv)}\n")
        print(profile_table(profiled(given)))
        return
    sides = {}
    for name in [given.side] if given.side else SIDES:
        command = [sys.executable, *sys.argv, f"--side={name}", "--here"]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        sides[name] = Side(**json.loads(output.splitlines()[-1]))
    name, first = next(iter(sides.items()))
    print(f"{first.where}\n\n    python {' '.join(sys.argv)}\n")
    print(table(sides, given.device == "cuda"))
    total = sum(first.flops.values())
    shares = ", ".join(f"{part} {flops / total:.1%}" for part, flops in first.flops.items())
    print(f"\nModel FLOPs of {name}: {shares}.")


if __name__ == "__main__":
    main()
