"""What a result says besides its metrics: the protocol, the costs and the versions."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recbole_idiomoe import __version__, distributed

if TYPE_CHECKING:
    from recbole_idiomoe.config import RunConfig

PACKAGES = ("recbole", "torch", "transformers", "accelerate", "numpy", "pandas", "scipy")


def protocol(config: RunConfig, item_num: int) -> dict[str, Any]:
    """What the numbers of a run depend on besides the model."""
    split, mode = config["eval_args"]["split"], config["eval_args"]["mode"]
    return {
        "split": " ".join(f"{kind} {how}" for kind, how in split.items()),
        "order": config["eval_args"]["order"],
        "group_by": config["eval_args"]["group_by"],
        "candidates": f"all {item_num} items" if set(mode.values()) == {"full"} else mode,
        "mask_seen": config["mask_seen"],
        "cold_start": _cold_start(config),
        "max_history": config["MAX_ITEM_LIST_LENGTH"],
        "filters": {
            name: config[name]
            for name in (
                "user_inter_num_interval",
                "item_inter_num_interval",
                "val_interval",
                "rm_dup_inter",
                "filter_inter_by_user_or_item",
            )
        },
        "metrics": config["metrics"],
        "topk": config["topk"],
        "valid_metric": config["valid_metric"],
        "trained_on": "training interactions only",
    }


def _cold_start(config: RunConfig) -> dict[str, float] | None:
    share, epsilon = config["cold_start"], config["cold_start_epsilon"]
    return {"unseen_test_items": share, "epsilon": epsilon} if share else None


class Clock:
    """Adds up the seconds that functions take, by name.

    Attributes:
        seconds: of calls that have ended, in this process and in those whose state it went on from.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count ``seconds`` more for ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def so_far(self) -> dict[str, float]:
        """``seconds``, with those of calls that have not ended."""
        now = time.perf_counter()
        running = {name: now - start for name, start in self._started.items()}
        names = self.seconds.keys() | running.keys()
        return {name: self.seconds.get(name, 0.0) + running.get(name, 0.0) for name in names}

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added to ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._started[name] = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.add(name, time.perf_counter() - self._started.pop(name))

        return timed


def plain(result: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as Python's own numbers; none if nothing was evaluated."""
    return {name: float(value) for name, value in (result or {}).items()}


class LearningCurve:
    """Notes what validation found after which epoch, for every trainer of RecBole's or ours.

    Attributes:
        points: ``epoch`` from 1, ``train_loss`` and ``valid``, the metric that selects. They are
            the trainer's ``learning_curve``, which its state keeps for a run that is resumed.
    """

    def __init__(self, trainer: Any) -> None:
        self.points: list[dict[str, float]] = vars(trainer).setdefault("learning_curve", [])
        self._trainer, self._validate = trainer, trainer._valid_epoch
        trainer._valid_epoch = self._note

    def _note(self, *args: Any, **kwargs: Any) -> Any:
        score, result = self._validate(*args, **kwargs)
        losses = self._trainer.train_loss_dict
        if losses:
            epoch = max(losses)
            point = {"epoch": epoch + 1, "train_loss": float(losses[epoch]), "valid": float(score)}
            self.points.append(point)
        return score, result


def reset_peak_memory(device: torch.device) -> None:
    """Have :func:`peak_memory_mib` tell the peak from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # Linux's; elsewhere the peak is that of all runs so far
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of the device, on a CPU of the process, since it was reset."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    with suppress(OSError):  # Linux: what getrusage says begins with the parent's peak
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return round(int(found[1]) / 2**10, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the number of threads on a CPU; of several processes, how many."""
    count = distributed.world_size()
    several = f"{count} x " if count > 1 else ""
    if device.type == "cuda":
        return several + torch.cuda.get_device_name()
    return f"{several}CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Python's version and those of the packages that numbers may depend on."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "recbole_idiomoe": __version__, **found}


@cache  # read anew, all of them take a sixth of the time of a small run
def _version(package: str) -> str:
    return importlib.metadata.version(package)
