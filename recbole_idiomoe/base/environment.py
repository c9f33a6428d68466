"""The machine and the versions that a result was made with; work on one thread."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from recbole_idiomoe.base import __version__, distributed

PACKAGES = ("recbole", "torch", "transformers", "accelerate", "numpy", "pandas", "scipy")


def reset_peak_memory(device: torch.device) -> None:
    """Make :func:`peak_memory_mib` measure from now on, where the system supports that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # Linux only; elsewhere the peak includes earlier runs
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB since the last reset: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    with suppress(OSError):  # Linux: getrusage starts from the peak of the parent process
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return round(int(found[1]) / 2**10, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def device_name(device: torch.device) -> str:
    """The GPU's name, or ``CPU`` with its threads; with several processes, their number first."""
    count = distributed.world_size()
    several = f"{count} x " if count > 1 else ""
    if device.type == "cuda":
        return several + torch.cuda.get_device_name()
    return f"{several}CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results may depend on."""
    own = {"python": platform.python_version(), "recbole_idiomoe": __version__}
    return own | {name: _version(name) for name in PACKAGES}


_version = cache(importlib.metadata.version)  # reading it takes a sixth of a small run's time


@contextmanager
def one_thread() -> Iterator[None]:
    """Run numpy's and torch's linear algebra inside the block on one thread.

    The number of threads changes the order of a sum and so its last bits, which can change a
    later choice, for example the cluster of a vector.
    """
    threads = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
