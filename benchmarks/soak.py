"""Long-running process: its resources after each cycle, and whether any of them grows.

    python benchmarks/soak.py --minutes=30
    python benchmarks/soak.py --minutes=5 --device=cuda

For two thirds of the time, a cycle trains, evaluates and loads each model in turn, and recommends
with it; for the rest, a cycle is an epoch of one long run of IDIOMoE with its evaluation. All use
``run`` and ``load`` in one process, on ml-100k's users with 20 to 25 interactions. The exit code is
1 if a resource grows: if, after a warm-up, the median slope between pairs of cycles (Theil-Sen)
exceeds TOLERANCES.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
import yaml
from measuring import markdown, take_settings, where
from scipy.stats import theilslopes

from recbole_idiomoe import load, run
from recbole_idiomoe.training.observed import ObservedTrainer

Reading = dict[str, float]

MODELS: dict[str, dict[str, Any]] = {
    "IDIOMoE": {"epochs": 2},  # one on items alone, one with text
    "SASRec": {"epochs": 1},
    "GRU4Rec": {"epochs": 1},
    "HSTU": {"epochs": 1},
    "E4SRec": {"epochs": 1, "id_encoder": {"epochs": 1}},
    "TransitionCounter": {},
}
SETTINGS: dict[str, Any] = {"user_inter_num_interval": "[20,25]", "show_progress": False}
SETTINGS |= {"state": "warning"}
# The tolerated growth in each cycle: allocators are not exact, and each epoch adds a line to the
# log. Seconds have no tolerance, since others may use the machine.
TOLERANCES: Reading = {
    "host MiB": 1.0,
    "heap MiB": 0.25,
    "open files": 0.0,
    "threads": 0.0,
    "tensors": 0.0,
    "objects": 20.0,
    "device MiB": 0.1,
    "device MiB reserved": 1.0,
    "log KiB": 2.0,
    "checkpoints KiB": 2.0,
    "temporary files": 0.0,
}
FEWEST = 5  # cycles that a slope needs


def read(folder: Path, since: float) -> Reading:
    """Measure the resources of this process and the files in its output folder.

    Args:
        folder: the output folder.
        since: start of the cycle, by ``time.perf_counter``.
    """
    seconds = time.perf_counter() - since
    gc.collect()
    process, objects = psutil.Process(), gc.get_objects()
    on_gpu = torch.cuda.is_initialized()
    return {
        "host MiB": process.memory_info().rss / 2**20,
        "heap MiB": heap() / 2**20,
        "open files": process.num_fds(),
        "threads": process.num_threads(),
        # Not isinstance, which makes some lazy objects import their module.
        "tensors": sum(issubclass(type(each), torch.Tensor) for each in objects),
        "objects": len(objects),
        "device MiB": torch.cuda.memory_allocated() / 2**20 if on_gpu else 0.0,
        "device MiB reserved": torch.cuda.memory_reserved() / 2**20 if on_gpu else 0.0,
        "log KiB": sum(size(folder / name) for name in ("log", "log_tensorboard")) / 2**10,
        "checkpoints KiB": size(folder / "saved") / 2**10,
        "temporary files": sum(1 for _ in (folder / "tmp").rglob("*")),
        "seconds": seconds,
    }


class _Heap(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap() -> int:
    """Bytes that malloc has allocated and not freed; 0 if the C library cannot tell.

    The process's memory also has freed blocks that malloc keeps, whose size varies.
    """
    try:
        tell = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    tell.restype = _Heap
    told = tell()
    return int(told.uordblks + told.hblkhd)


def size(folder: Path) -> int:
    """Bytes of the files under ``folder``; 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def soak_runs(
    cycle: Callable[[], object], folder: Path, goes_on: Callable[[int], bool]
) -> list[Reading]:
    """Readings after each ``cycle`` of runs, whose files are then removed.

    Args:
        goes_on: whether another cycle follows, given the number of finished ones.
    """
    readings: list[Reading] = []
    while goes_on(len(readings)):
        start = time.perf_counter()
        cycle()
        readings.append(read(folder, start))
        for name in ("log", "log_tensorboard", "saved"):
            shutil.rmtree(folder / name)
    return readings


def run_each(models: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Train, evaluate and load each model in turn, and recommend with it."""
    for model, own in models.items():
        (result,) = run(model, "ml-100k", settings={**settings, **own})
        recommend(result)


def recommend(result: Mapping[str, Any]) -> None:
    """Load the model of a run and recommend with it, as a service does."""
    device = "cpu" if result["device"].startswith("CPU") else "cuda"
    recommender = load(result["folder"], device)
    history = recommender.catalog.item_ids[1:6]
    session = recommender.session(history)
    assert len(recommender.recommend(history)) == len(session.recommend()) == 10


def soak_epochs(
    train: Callable[..., object], folder: Path, goes_on: Callable[[int], bool]
) -> list[Reading]:
    """Readings after each epoch of ``train``, which starts a run with the given settings."""
    readings: list[Reading] = []
    validated, start = ObservedTrainer._valid_epoch, time.perf_counter()

    def noted(*args: Any, **kwargs: Any) -> Any:
        nonlocal start
        result = validated(*args, **kwargs)
        readings.append(read(folder, start))
        if not goes_on(len(readings)):
            raise KeyboardInterrupt  # as a user would end it
        start = time.perf_counter()
        return result

    endless = {"epochs": 10**6, "stopping_step": 10**6, "item_warmup": 0.0, "text_ramp": 0.0}
    with patch.object(ObservedTrainer, "_valid_epoch", noted), suppress(KeyboardInterrupt):
        train(endless)
    return readings


def warm(readings: Sequence[Reading]) -> Sequence[Reading]:
    """The readings without the warm-up: the first fifth, at least two."""
    return readings[max(2, len(readings) // 5) :]


def slopes(readings: Sequence[Reading]) -> Reading:
    """The growth of each resource in a cycle, after the warm-up."""
    return {
        name: float(theilslopes([reading[name] for reading in warm(readings)]).slope)
        for name in readings[0]
    }


def growing(readings: Sequence[Reading]) -> list[str]:
    """The resources that grow by more than the tolerance."""
    found = slopes(readings)
    return [name for name, tolerated in TOLERANCES.items() if found[name] > tolerated]


def table(readings: Sequence[Reading]) -> str:
    """The first, middle and last reading after the warm-up, and the growth over all of them."""
    counted, found = warm(readings), slopes(readings)
    shown = [counted[0], counted[len(counted) // 2], counted[-1]]
    rows = []
    for name in readings[0]:
        cells = [f"{reading[name]:,.1f}" for reading in shown]
        highest = max(reading[name] for reading in counted)
        tolerated = f"{TOLERANCES[name]:g}" if name in TOLERANCES else ""
        rows.append([name, *cells, f"{highest:,.1f}", f"{found[name]:+.3f}", tolerated])
    return markdown(["", "first", "middle", "last", "highest", "a cycle", "tolerated"], rows)


def report(soaked: Mapping[str, Sequence[Reading]]) -> bool:
    """Print a table for each kind of cycles; returns whether a resource grows."""
    grown = []
    for kind, readings in soaked.items():
        print(f"\n{len(readings)} cycles of {kind}, of which {len(warm(readings))} count:\n")
        print(table(readings))
        grown += [f"{name} ({kind})" for name in growing(readings)]
    print(f"\nGrows: {', '.join(grown)}" if grown else "\nNothing grows.")
    return bool(grown)


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="in all (default: 30)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    take_settings(parser, "IDIOMoE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = read_arguments(arguments)
    settings = SETTINGS | {"gpu_id": "" if given.device == "cpu" else "0"}
    own = {name: yaml.safe_load(value) for name, value in given.setting}
    models = MODELS | {"IDIOMoE": MODELS["IDIOMoE"] | own}
    if find_spec("peft") is None:
        print("without E4SRec, which needs peft")
        del models["E4SRec"]
    start = time.perf_counter()

    def until(share: float) -> Callable[[int], bool]:
        enough = start + share * given.minutes * 60
        return lambda done: done < FEWEST or time.perf_counter() < enough

    def train(endless: Mapping[str, Any]) -> None:
        run("IDIOMoE", "ml-100k", settings={**settings, **own, **endless})

    with tempfile.TemporaryDirectory() as name, chdir(name):
        folder = Path(name)
        (folder / "tmp").mkdir()
        with patch.object(tempfile, "tempdir", str(folder / "tmp")):
            soaked = {
                "runs": soak_runs(lambda: run_each(models, settings), folder, until(2 / 3)),
                "epochs": soak_epochs(train, folder, until(1)),
            }
    print(f"{where(given.device)}; {time.perf_counter() - start:,.0f} s")
    return int(report(soaked))


if __name__ == "__main__":
    sys.exit(main())
