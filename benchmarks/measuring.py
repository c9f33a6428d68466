"""Shared by the benchmarks: models of Qwen2.5's shape, time and memory, tables."""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from recbole_idiomoe.lm.backbone import no_progress_bars
from recbole_idiomoe.lm.bundled import verified_folder

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 151_936, "hidden_size": 64, "intermediate_size": 128}
    | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    "0.5b": {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864}
    | {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
    "7b": {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944}
    | {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"tie_word_embeddings": False},
}


def qwen(tiny: bool = False, device: str = "cpu", shape: str = "0.5b") -> PreTrainedModel:
    """A model of Qwen2.5's architecture with random weights, or a ``tiny`` one.

    Weights are float32, rounded to bfloat16's precision as in the published checkpoint.
    """
    sizes = {"tie_word_embeddings": True} | SHAPES["tiny" if tiny else shape]
    config = Qwen2Config(**sizes, max_position_embeddings=32_768, rope_theta=1e6)
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen2ForCausalLM(config).to(torch.bfloat16).float()


def save_qwen(folder: Path, tokenizer: str | None = None, tiny: bool = False) -> None:
    """Save :func:`qwen` with a tokenizer as a folder for the setting ``backbone``.

    Args:
        tokenizer: folder of Qwen2.5's tokenizer; None: the bundled one, which gives more tokens.
    """
    with no_progress_bars():
        qwen(tiny).save_pretrained(folder)
    source = verified_folder(weights=False) if tokenizer is None else tokenizer
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def where(device: str) -> str:
    """The GPU (or CPU and threads) and the versions of torch and transformers."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, transformers {transformers.__version__}"


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: str, repeats: int = 20, warmup: int = 3) -> float:
    """Median seconds of ``run``, including the device's work."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Peak memory of a GPU during ``run`` in bytes; 0 on a CPU."""
    if not device.startswith("cuda"):
        run()
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that operators create inside the block.

    Attributes:
        bytes: size of the largest tensor, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            for one in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(one, torch.Tensor):
                    self.bytes = max(self.bytes, one.nbytes)
        return made


def matrix_rate(device: str, size: int = 8192) -> float:
    """FLOP/s of a square bf16 matrix product, the device's practical maximum."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: one @ other, device)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def take_settings(parser: ArgumentParser, whose: str) -> None:
    """Add the repeatable option ``--setting NAME VALUE``; its value is a list of pairs."""
    parser.add_argument(
        "--setting",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help=f"of {whose}; may be given again",
    )
