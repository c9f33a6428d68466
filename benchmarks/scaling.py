"""Speed-up of training on several GPUs, with the same steps of amazon-toys.

    python benchmarks/scaling.py --data_path=DATA --tokenizer=FOLDER --device=cuda --processes 1 2
    python benchmarks/scaling.py --data_path=DATA --tokenizer=FOLDER --device=cuda --processes 2 \\
        --shape=7b --sharding=fsdp2 --steps=4

Each number of processes is a separate job, under torchrun if it is more than one, with the trainer,
loader and model of a run of IDIOMoE (see training.py). All jobs take the same optimizer steps and
reach the same loss up to rounding. They take the steps twice and measure the second time. With
``--histories 128 512``, steps of each size are measured; larger steps share more work. At
Qwen2.5-7B's shape, histories have at least 40 items, most of them cut at 1024 tokens, 16 in a step,
and blocks are recomputed in the backward pass.

Speed-up and efficiency are relative to the first number of processes. The table also shows their
bounds: a step without the exchange of gradients, the rate of an all-reduce of a large tensor, and
the time of a step's kernels without communication. If that is well below the step, the GPU waits
for the host.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from measuring import SHAPES, markdown, seconds, take_settings, where
from torch.nn.parallel import DistributedDataParallel
from training_sides import FirstSteps, kernel_seconds, warmed_up

from recbole_idiomoe.base import distributed
from recbole_idiomoe.config.run_config import let_gpu_memory_grow

LARGE = {
    "user_inter_num_interval": "'[40,inf)'",
    "item_inter_num_interval": "'[0,inf)'",
    "train_batch_size": "16",
    "max_batch_tokens": "8192",
    "activation_checkpointing": "True",
}
LINK_MIB = 256


@dataclass
class Job:
    """Time and memory of one number of processes for the same steps."""

    processes: int
    histories: int
    """Histories in a step, over all processes."""
    steps: int
    seconds: float
    """Time of all steps."""
    tokens: int
    """Tokens in all steps, without padding."""
    sequences: int
    loss: float
    peak_gib: list[float]
    """Peak GPU memory by rank; empty on a CPU."""
    where: str
    unsent: float | None = None
    """Seconds of all steps without the exchange of gradients; None without DDP."""
    computing: float | None = None
    """Seconds of rank 0's kernels in all steps, without communication; None on a CPU."""
    link: float | None = None
    """Bytes per second of an all-reduce between the ranks; None for one rank."""


def measure(given: argparse.Namespace) -> list[Job]:
    """Measure the steps in the processes that were started; returns a job for each step size."""
    distributed.start()
    on_gpu = given.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(distributed.local_rank())
    trainer, train_data = warmed_up(given)
    loader = trainer.loader.loader

    def epoch(histories: int) -> Job:
        loader.sampler.batch_size = histories
        trainer.loader = timed = FirstSteps(loader, given.steps)
        distributed.gathered(None)  # all are ready
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        losses: list[float] = []
        run = partial(trainer._train_epoch, train_data, 1)
        own = seconds(lambda: losses.append(run()), given.device, 1, warmup=0)
        peak = [torch.cuda.max_memory_allocated() / 2**30] if on_gpu else []
        lengths = torch.cat(timed.lengths)
        return Job(
            processes=distributed.world_size(),
            histories=histories,
            steps=len(timed),
            seconds=max(distributed.gathered(own)),
            tokens=sum(distributed.gathered(int(lengths.sum()))),
            sequences=sum(distributed.gathered(len(lengths))),
            loss=losses[0],
            peak_gib=[each for peaks in distributed.gathered(peak) for each in peaks],
            where=where(given.device),
        )

    jobs = []
    for histories in given.histories or [loader.sampler.batch_size]:
        epoch(histories)  # compiles for every length, and allocates all memory
        jobs.append(epoch(histories))
    if isinstance(trainer.engine, DistributedDataParallel):
        for job in jobs:
            with trainer.engine.no_sync():  # the ranks' weights diverge: the loss is not used
                job.unsent = epoch(job.histories).seconds
    if on_gpu:
        for job in jobs:
            kernels = kernel_seconds(partial(epoch, job.histories))
            job.computing = sum(own for name, own in kernels.items() if "nccl" not in name)
    if distributed.world_size() > 1:
        rate = link_rate(given)
        for job in jobs:
            job.link = rate
    return jobs


def link_rate(given: argparse.Namespace) -> float:
    """Bytes per second of a large all-reduce between all ranks."""
    data = torch.zeros((1 if given.tiny else LINK_MIB) * 2**18, device=given.device)
    return data.nbytes / seconds(lambda: dist.all_reduce(data), given.device)


def table(jobs: Sequence[Job]) -> str:
    """The jobs relative to the first with as many histories; times are shown for GPUs only."""
    rows = []
    on_gpu = bool(jobs[0].peak_gib)
    for job in sorted(jobs, key=lambda job: job.histories):
        first = next(each for each in jobs if each.histories == job.histories)
        speedup = first.seconds / job.seconds
        row = [f"{job.histories}", f"{job.processes}", f"{job.steps}"]
        row += [f"{job.tokens / job.sequences:.0f}"]
        if on_gpu:
            row += [f"{1e3 * job.seconds / job.steps:.1f}", f"{job.tokens / job.seconds:,.0f}"]
            row += [" / ".join(f"{peak:.1f}" for peak in job.peak_gib)]
            for part in (job.unsent, job.computing):
                row += [f"{1e3 * part / job.steps:.1f}" if part else ""]
            row += [f"{job.link / 1e9:.0f}" if job.link else ""]
        efficiency = speedup * first.processes / job.processes
        rows.append([*row, f"{speedup:.2f}", f"{efficiency:.0%}", f"{job.loss:.5f}"])
    measured = ["ms a step", "tokens/s", "peak GiB, by rank"]
    measured += ["ms without sending", "ms of kernels", "all-reduce, GB/s"]
    header = ["histories", "processes", "steps", "tokens a history", *(measured if on_gpu else [])]
    return markdown([*header, "times as fast", "efficiency", "loss"], rows)


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True, help="folder of amazon-toys/")
    parser.add_argument("--tokenizer", required=True, help="folder of Qwen2.5's")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(1 2)")
    parser.add_argument("--shape", default="0.5b", choices=SHAPES, help="of Qwen2.5 (0.5b)")
    parser.add_argument("--sharding", default="ddp", choices=("ddp", "fsdp2"))
    parser.add_argument("--steps", type=int, help="to measure (default: an epoch)")
    parser.add_argument(
        "--histories", type=int, nargs="+", help="in a step, each in turn (default: the settings')"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model, few users, 2 steps")
    take_settings(parser, "the package")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.warmup = 1  # the steps themselves run twice
    if given.tiny:
        given.steps = given.steps or 2
    if given.shape == "7b":
        given.setting = [*LARGE.items(), *given.setting]
    given.setting = [*given.setting, ("sharding", given.sharding)]
    return given


def measured(processes: int) -> list[Job]:
    """Run this script in ``processes`` processes, which share the cores; returns their jobs."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *sys.argv, "--here"]
    # torchrun's default of one thread is too slow to read and copy billions of weights.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    output = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, env={**threads, **os.environ}
    ).stdout
    found = output.splitlines()[-1]
    print(found, file=sys.stderr, flush=True)  # not lost if a later job fails
    return [Job(**job) for job in json.loads(found)]


def main() -> int:
    given = read_arguments()
    if given.here:
        let_gpu_memory_grow()
        jobs = [asdict(job) for job in measure(given)]
        if distributed.is_main():
            print(json.dumps(jobs), flush=True)
        return 0
    jobs = [job for processes in given.processes for job in measured(processes)]
    print(f"{jobs[0].where}\n\n    python {' '.join(sys.argv)}\n")
    print(table(jobs))
    return 0


if __name__ == "__main__":
    sys.exit(distributed.as_one(main) if "--here" in sys.argv else main())
