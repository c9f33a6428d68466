"""``efficiency``: time and memory of a run's architecture on this machine (paper, Table 12)."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.analysis.runs import Run, open_runs, require_item_tokens
from recbole_idiomoe.analysis.settings import EfficiencySettings
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.compilation import compile_blocks
from recbole_idiomoe.lm.decoder import attention_kernels
from recbole_idiomoe.lm.training import halve_frozen
from recbole_idiomoe.models.language.catalog_lm import CatalogLM, untouched_backbone
from recbole_idiomoe.training.trainer import COMPILED_WIDTH

logger = logging.getLogger(__name__)

PHASES = ("train", "infer")


class Batch(NamedTuple):
    """Hybrid tokens (B, T): text, with items at random positions."""

    input_ids: Tensor
    token_types: Tensor
    segments: Tensor
    """Segment of each token, (B, T): an item and the text before it share one."""
    item_count: int


@dataclass(frozen=True)
class Cost:
    """Cost of one step on one batch."""

    times: list[float]
    """Seconds of each repetition."""
    peak_bytes: int | None
    """Peak memory in bytes, including the model; None on a CPU."""

    @property
    def seconds(self) -> float:
        """The median of ``times``."""
        return statistics.median(self.times)


def efficiency(folders: Sequence[Path], settings: EfficiencySettings) -> Analysis:
    """Time and memory of training and inference for one or several runs.

    Each run is compared with its dense form: the decoder that it started from, with an item table
    of the same size. As in the paper, tokens are random, since time does not depend on them.

    Returns:
        Tables ``costs`` and, on a GPU, ``memory``: a row for each run, phase and length.

    Raises:
        IdiomoeError: a folder is not a run with one token per item, its backbone is missing, or
            no length fits its context.
    """
    analysis = Analysis(
        name="efficiency",
        title="Time and memory",
        settings=asdict(settings),
        tables={"costs": []},
        notes=[_how(settings)],
    )
    tables = analysis.tables
    for run in open_runs(folders, settings):
        require_item_tokens(run)
        lm = run.catalog_lm.lm
        context = getattr(lm.backbone.config, "max_position_embeddings", None) or math.inf
        lengths = [length for length in settings.length if length <= context]
        if not lengths:
            raise SettingError(
                f"--length={settings.length}: {run.label} reads {context} tokens at most; give "
                "a shorter one."
            )
        sides = [dense_form(run), lm]
        too_long = sorted(set(settings.length) - set(lengths))
        analysis.notes.append(_note(run, sides, too_long))
        _compile(run.catalog_lm, sides)
        for phase, length in product(PHASES, lengths):
            dense, own = compare(run.catalog_lm, sides, phase, length, settings)
            place: Row = {"run": run.label, "length": length, "phase": phase}
            columns = _columns(dense, own, settings.batch_size, length)
            tables["costs"].append(place | columns)
            if memory := _memory(dense.peak_bytes, own.peak_bytes):
                tables.setdefault("memory", []).append(place | memory)
            logger.info(
                f"{run.label}, {phase}, {length} tokens: {columns['run_ms']:.1f} ms, the dense "
                f"form {columns['dense_ms']:.1f} ms"
            )
        analysis.add_run(run.about, lm.device)
    analysis.title += f" on {analysis.device} (Table 12)"
    return analysis


def dense_form(run: Run) -> IdiomoeForCausalLM:
    """The decoder that the run started from, with an item table and one FFN in each layer."""
    settings, lm = run.catalog_lm.settings, run.catalog_lm.lm
    backbone, _ = untouched_backbone(settings, run.info["settings"]["seed"])
    dense = IdiomoeForCausalLM.from_backbone(
        backbone.to(lm.device),
        lm.config.item_num,
        item_embedding_dim=settings.item_embedding_dim,
        expert_layers=settings.expert_layers,  # applies dropout in the same layers as the run
        expert_width=settings.expert_width,
        dropout=settings.dropout,
        softmax=settings.softmax,
        architecture="dense",
    )
    dense.backbone.set_attn_implementation(settings.attn_implementation)
    return dense


def compare(
    catalog_lm: CatalogLM,
    sides: Sequence[IdiomoeForCausalLM],
    phase: str,
    length: int,
    settings: EfficiencySettings,
) -> list[Cost]:
    """Costs of the same step for each of ``sides``.

    The sides are measured in turns, so that other work on the machine slows all of them. The
    run's settings apply to every side: precision, compiled blocks and frozen weights.
    """
    batch, trains = make_batch(catalog_lm.lm, settings, length), phase == "train"
    timers, costs = [], []
    for lm in sides:
        lm.train(trains)
        lm.freeze(catalog_lm.settings.freeze)
        if trains and catalog_lm.uses_bf16:
            halve_frozen(lm)
        step, optimizer = (_training_step if trains else _inference_step)(lm, catalog_lm, batch)
        step()  # compiles, and creates the optimizer's state
        costs.append(Cost([], _peak(step, lm, optimizer)))
        threads = torch.get_num_threads()
        timers.append(Timer("step()", globals={"step": step}, num_threads=threads))
    for _ in range(settings.repeats):
        for timer, cost in zip(timers, costs, strict=True):
            cost.times.append(timer.timeit(1).mean)
    for lm in sides:
        lm.zero_grad()
    return costs


def make_batch(lm: IdiomoeForCausalLM, settings: EfficiencySettings, length: int) -> Batch:
    """Random tokens, a share of ``item_share`` items, with ``length`` as their seed."""
    shape = settings.batch_size, length
    generator = torch.Generator().manual_seed(length)
    offset = lm.config.item_token_offset
    text = torch.randint(offset, shape, generator=generator)
    items = offset + torch.randint(1, lm.config.item_num, shape, generator=generator)
    places = torch.randperm(text.numel(), generator=generator).view(shape)
    is_item = places < round(settings.item_share * text.numel())
    token_types = is_item.long()
    segments = token_types.cumsum(1) - token_types + 1
    return Batch(
        input_ids=torch.where(is_item, items, text).to(lm.device),
        token_types=token_types.to(lm.device),
        segments=segments.to(lm.device),
        item_count=int(is_item.sum()),
    )


def _compile(catalog_lm: CatalogLM, models: Sequence[IdiomoeForCausalLM]) -> None:
    """Compile the blocks of ``models`` if training would compile the run's."""
    compiles = catalog_lm.settings.compile
    if compiles is None:
        compiles = catalog_lm.lm.backbone.config.hidden_size >= COMPILED_WIDTH
    if compiles and catalog_lm.lm.device.type == "cuda":
        for lm in models:
            compile_blocks(lm.backbone)


def _training_step(
    lm: IdiomoeForCausalLM, catalog_lm: CatalogLM, batch: Batch
) -> tuple[Callable[[], object], torch.optim.Optimizer]:
    """A step of training: forward, loss at every item, backward and AdamW; and its optimizer."""
    flat = torch.arange(batch.input_ids.numel(), device=lm.device)
    follows = flat % batch.input_ids.shape[1] != 0
    predicted = flat[batch.token_types.flatten().bool() & follows]
    targets = batch.input_ids.flatten()[predicted] - lm.config.item_token_offset
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=lm.device.type == "cuda" or None)

    def step() -> None:
        optimizer.zero_grad()
        with catalog_lm.autocast(), attention_kernels():
            loss = lm.item_loss(_states(lm, batch).flatten(0, 1)[predicted - 1], targets)
            every = torch.ones_like(batch.token_types, dtype=torch.bool)
            auxiliary = lm.auxiliary_loss(batch.token_types, every)
        (loss if auxiliary is None else loss + auxiliary).backward()
        optimizer.step()

    return step, optimizer


def _inference_step(
    lm: IdiomoeForCausalLM, catalog_lm: CatalogLM, batch: Batch
) -> tuple[Callable[[], object], None]:
    """A step of inference: the trunk, and scores of all items after the last token."""

    @torch.no_grad()
    def step() -> Tensor:
        with catalog_lm.autocast(), attention_kernels():
            return lm.item_logits(_states(lm, batch)[:, -1])

    return step, None


def _states(lm: IdiomoeForCausalLM, batch: Batch) -> Tensor:
    states = lm.hidden_states(**batch._asdict()).last_hidden_state
    assert states is not None
    return states


def _peak(
    step: Callable[[], object], lm: IdiomoeForCausalLM, optimizer: torch.optim.Optimizer | None
) -> int | None:
    """Peak bytes of this side on a GPU: its weights and optimizer state, and what a step adds."""
    device = lm.device
    if device.type != "cuda":
        return None
    lm.zero_grad()
    kept = [*lm.parameters(), *lm.buffers()]
    if optimizer is not None:
        kept += [each for state in optimizer.state.values() for each in state.values()]
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    added = torch.cuda.max_memory_allocated(device) - before
    return added + sum(each.nbytes for each in kept if each.device == device)


def _columns(dense: Cost, run: Cost, batch_size: int, length: int) -> Row:
    """The columns of the paper's Table 12.

    The spread is half the interquartile range of the ratios of single repetitions.
    """
    ratios = np.divide(run.times, dense.times)
    spread = float(np.subtract(*np.quantile(ratios, (0.75, 0.25)))) / 2
    seconds = {"dense": dense.seconds, "run": run.seconds}
    return {
        **{f"{side}_ms": 1e3 * each for side, each in seconds.items()},
        "more_time_%": 100 * (run.seconds / dense.seconds - 1),
        "spread_%": 100 * spread,
        **{f"{side}_examples_s": batch_size / each for side, each in seconds.items()},
        **{f"{side}_tokens_s": batch_size * length / each for side, each in seconds.items()},
    }


def _memory(dense: int | None, run: int | None) -> Row:
    """Columns of peak memory, from bytes; none on a CPU."""
    if dense is None or run is None:
        return {}
    more = 100 * (run / dense - 1)
    return {"dense_gib": dense / 2**30, "run_gib": run / 2**30, "more_memory_%": more}


def _how(settings: EfficiencySettings) -> str:
    return (
        f"A batch has {settings.batch_size} sequences of random tokens, "
        f"{settings.item_share:.0%} of them items; a time is the median of {settings.repeats} "
        "steps, the two sides measured in turns, and the spread half the range between the "
        "quartiles of what turns found. dense: the run's backbone with an item table and nothing "
        "else added. train: forward, loss at every item, backward, AdamW; infer: the catalogue's "
        "scores after the last token. Memory is measured on a GPU alone."
    )


def _note(run: Run, sides: Sequence[IdiomoeForCausalLM], too_long: list[int]) -> str:
    freeze = run.catalog_lm.settings.freeze
    counts = []
    for lm in sides:
        lm.freeze(freeze)
        counts.append(sum(p.numel() for p in lm.parameters() if p.requires_grad))
    precision = "bf16" if run.catalog_lm.uses_bf16 else "fp32"
    text = (
        f"{run.label}: {counts[1]:,} parameters train, of the dense form {counts[0]:,} "
        f"(freeze: {freeze}); {precision}; {run.catalog_lm.lm.config.item_num - 1:,} items"
    )
    if too_long:
        text += f"; lengths beyond its context are left out: {', '.join(map(str, too_long))}"
    return f"{text}."
