"""Time and memory of evaluation on the whole catalogue.

    python benchmarks/evaluation.py --data_path=DATA --tokenizer=QWEN2.5 --device=cuda

First, the time of a whole test at Qwen2.5-0.5B's shape, from the loader to the metrics, compared
with RecBole's SASRec on the same users. Weights are random, as times do not depend on them. The
model is compiled as for training: compare with --setting compile False. Then the memory for more
and more users of a synthetic catalogue, with and without the bound on scores held at a time.
Without --tokenizer, the bundled one with 16,384 tokens is used.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measuring import (
    LargestTensor,
    markdown,
    peak_bytes,
    save_qwen,
    seconds,
    synchronize,
    take_settings,
    where,
)

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol import loader as loaders
from recbole_idiomoe.protocol.loader import CandidateLoader
from recbole_idiomoe.protocol.seen_items import SeenItemMask
from recbole_idiomoe.protocol.splits import split_dataset
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from recbole_idiomoe.training.trainers import get_trainer

EVERYTHING = 2**62  # a bound on scores that never applies


def prepare(model: str, dataset: str, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A trainer of an untrained model, the test split's loader, and the configuration."""
    config = RunConfig(model, dataset, settings=settings)
    splits = split_dataset(config, load_dataset(config))
    network = get_model(model)(config, splits.train._dataset).to(config["device"])
    trainer = get_trainer(model)(config, network)
    if isinstance(trainer, IdiomoeTrainer):
        trainer._make_fast()  # before it trains, and so before it evaluates
    return trainer, splits.test, config


class Clocks:
    """Seconds spent in methods, by name, including the device's work."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time all calls of ``owner.method`` as ``name``."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(self.device)
            start = time.perf_counter()
            result = original(*args, **kwargs)
            synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        setattr(owner, method, timed)


def measure_time(given: argparse.Namespace, settings: dict[str, Any]) -> str:
    """A table of the time of a whole evaluation and of its parts."""
    runs = {}
    for model in ("SASRec", "IDIOMoE"):
        trainer, test, _ = prepare(model, given.dataset, settings)

        def evaluate(trainer: Any = trainer, test: Any = test) -> None:
            trainer.evaluate(test, load_best_model=False)

        runs[model] = seconds(evaluate, given.device, repeats=1, warmup=1)
    whole = runs["IDIOMoE"]

    # Clocks wait for the device after each part, so the parts are timed in a second run.
    clocks = Clocks(given.device)
    language_model = trainer.catalog_lm
    clocks.watch(language_model, "sequences", "histories to tokens")
    clocks.watch(language_model.lm, "hidden_states", "trunk")
    clocks.watch(language_model.lm, "item_logits", "scoring")
    clocks.watch(trainer.eval_collector, "eval_batch_collect", "lists and metrics")
    clocks.watch(trainer.evaluator, "evaluate", "lists and metrics")
    clocked = seconds(evaluate, given.device, repeats=1, warmup=0)
    parts = clocks.seconds | {"loader, masks and the rest": clocked - sum(clocks.seconds.values())}

    header = ["", "share", *(["seconds"] if on_gpu(given) else [])]
    rows = [["whole evaluation", "100%", f"{whole:.1f}"]]
    rows += [[name, f"{s / clocked:.1%}", f"{s:.1f}"] for name, s in parts.items()]
    users, items = len(test._dataset), test._dataset.item_num - 1
    return "\n\n".join(
        (
            f"{given.dataset}: {users:,} users x {items:,} items",
            markdown(header, [row[: len(header)] for row in rows]),
            "The parts are from a second run, which waits for the device after each of them. "
            f"SASRec's whole evaluation takes {runs['SASRec'] / whole:.3f} of IDIOMoE's.",
        )
    )


def write_catalogue(folder: Path, items: int, users: int, length: int) -> str:
    """Write atomic files of users with ``length`` random items; returns the data set's name."""
    name = "catalogue"
    place = folder / name
    place.mkdir()
    drawn = np.random.default_rng(0).integers(items, size=(users, length)).tolist()
    rows = (
        f"u{user}\ti{item}\t{when}\n"
        for user, history in enumerate(drawn)
        for when, item in enumerate(history)
    )
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (place / f"{name}.inter").write_text(header + "".join(rows))
    listed = "".join(f"i{item}\n" for item in range(items))
    (place / f"{name}.item").write_text("item_id:token\n" + listed)
    return name


def measure_memory(given: argparse.Namespace, settings: dict[str, Any], folder: Path) -> str:
    """A table of the memory for evaluating more and more users of a synthetic data set."""
    counts = [128, 256, 512] if given.tiny else [512, 1024, 2048]
    bound = loaders.MAX_SCORES if given.items > 100_000 else given.items * 16
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]}
    settings = settings | {"load_col": columns, "item_text_fields": None, "use_text": False}
    settings |= {"user_inter_num_interval": None, "item_inter_num_interval": None}
    settings |= {"data_path": str(folder), "eval_batch_size": counts[-1]}
    name = write_catalogue(folder, given.items, counts[-1], 20)
    trainer, test, config = prepare("IDIOMoE", name, settings)

    def memory(users: int, scores: int) -> float:
        """MiB: on a GPU all beyond the model, else the largest tensor."""
        loaders.MAX_SCORES = scores
        part = test._dataset.copy(test._dataset.inter_feat[:users])
        loader = CandidateLoader(config, part)
        loader.mask(SeenItemMask(test.seen.seen, part))

        def evaluate() -> None:
            trainer.evaluate(loader, load_best_model=False)

        if on_gpu(given):
            before = torch.cuda.memory_allocated(given.device)
            return (peak_bytes(evaluate, given.device) - before) / 2**20
        with LargestTensor() as largest:
            evaluate()
        return largest.bytes / 2**20

    memory(counts[0], bound)  # kernels load
    bounded = [memory(count, bound) for count in counts]
    plain = [memory(count, EVERYTHING) for count in counts]
    what = "peak memory" if on_gpu(given) else "largest tensor"
    rows = [
        [f"{count:,}", f"{mine:,.1f}", f"{mine / bounded[0]:.2f}", f"{all_:,.1f}"]
        for count, mine, all_ in zip(counts, bounded, plain, strict=True)
    ]
    header = ["users", f"{what}, MiB", f"of {counts[0]} users'", "without a bound, MiB"]
    width = trainer.catalog_lm.lm.config.hidden_size
    title = f"{given.items:,} items, item table of width {width}"
    return f"{title}\n\n{markdown(header, rows)}"


def on_gpu(given: argparse.Namespace) -> bool:
    return given.device.startswith("cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="default: amazon-toys; with --tiny ml-100k, in part")
    parser.add_argument("--data_path", help="folder that holds the data set's folder")
    parser.add_argument("--tokenizer", help="folder of Qwen2.5's tokenizer")
    parser.add_argument("--items", type=int, help="of the synthetic catalogue (500,000)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model and small data")
    take_settings(parser, "the package")
    given = parser.parse_args()
    given.dataset = given.dataset or ("ml-100k" if given.tiny else "amazon-toys")
    given.items = given.items or (5000 if given.tiny else 500_000)
    if given.tokenizer:
        given.tokenizer = str(Path(given.tokenizer).resolve())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_qwen(folder / "backbone", given.tokenizer, given.tiny)
        settings: dict[str, Any] = {"gpu_id": "0" if on_gpu(given) else "", "show_progress": False}
        settings |= {"backbone": str(folder / "backbone"), "item_init": "random"}
        settings |= {name: yaml.safe_load(value) for name, value in given.setting}
        real = {"data_path": str(Path(given.data_path).resolve())} if given.data_path else {}
        if given.dataset == "ml-100k":
            real["user_inter_num_interval"] = "[20,25]"
        with contextlib.chdir(folder):  # RecBole writes logs into the working directory
            print(where(given.device), flush=True)
            print(f"\n{measure_time(given, settings | real)}", flush=True)
            print(f"\n{measure_memory(given, settings, folder)}")


if __name__ == "__main__":
    main()
