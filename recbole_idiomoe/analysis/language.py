"""``language``: how much language a run has kept (paper, section 3.1, Figure 3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_idiomoe.analysis.benchmarks import Benchmarks, Scores
from recbole_idiomoe.analysis.prompts import text_file
from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.analysis.runs import Run, open_runs
from recbole_idiomoe.analysis.settings import LanguageSettings
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.likelihood import Likelihood
from recbole_idiomoe.protocol.language import text_likelihood, tokenizer_name, window_of
from recbole_idiomoe.report.extra_rows import nll_change

logger = logging.getLogger(__name__)


def language(folders: Sequence[Path], settings: LanguageSettings) -> Analysis:
    """Likelihood of a text, and benchmark scores, for runs and their untouched backbones.

    In a run every token takes the text path. Both compute in float32, so that equal weights give
    bit-identical results. A backbone that several runs share is measured once.

    Returns:
        Tables ``text`` (a row for each run) and ``tasks`` (a row for each run, task and metric).

    Raises:
        IdiomoeError: neither a text nor benchmarks are given, one cannot be read, lm_eval is
            missing, a folder is not a run of a language model, or its backbone is missing.
    """
    if not (settings.text or settings.lm_eval):
        raise SettingError(
            "language: nothing to measure; give --text=FILE, --lm_eval=TASK or both."
        )
    text = text_file(settings.text) if settings.text else ""
    benchmarks = Benchmarks(settings) if settings.lm_eval else None
    analysis = Analysis(
        name="language",
        title="Language kept (section 3.1, Figure 3)",
        settings=asdict(settings),
        tables={"text": [], "tasks": []},
        notes=_notes(settings),
    )
    if benchmarks:
        analysis.versions["lm_eval"] = benchmarks.version
    untouched: dict[tuple[object, ...], tuple[Likelihood | None, Scores]] = {}
    for run in open_runs(folders, settings):
        logger.info(f"{run.label} and its untouched backbone ...")
        lm = run.catalog_lm.lm.float()
        device = lm.device  # measuring moves the model to the CPU
        backbone, tokenizer = run.untouched_backbone()
        measure = partial(_measured, tokenizer, text, benchmarks, device)
        if run.origin not in untouched:
            untouched[run.origin] = measure(backbone)
        likelihood, scores = measure(lm.language_model())
        likelihood_before, scores_before = untouched[run.origin]
        if likelihood and likelihood_before:
            row = _text_row(run.label, likelihood, likelihood_before)
            analysis.tables["text"].append(row)
            analysis.notes.append(_note(run, row["nll_change"], window_of(backbone)))
        analysis.tables["tasks"] += _task_rows(run.label, scores, scores_before)
        analysis.add_run(run.about, device)
    return analysis


def _measured(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    benchmarks: Benchmarks | None,
    device: torch.device,
    model: PreTrainedModel,
) -> tuple[Likelihood | None, Scores]:
    likelihood = text_likelihood(model, tokenizer, text, device) if text else None
    scores = benchmarks.scores(model.eval().to(device), tokenizer) if benchmarks else {}
    model.cpu()
    return likelihood, scores


def _text_row(label: str, after: Likelihood, before: Likelihood) -> dict[str, Any]:
    return {
        "run": label,
        "tokens": after.token_num,
        "bytes": after.byte_num,
        "nll": after.nll_per_token,
        "untouched_nll": before.nll_per_token,
        "nll_change": after.nll_per_token - before.nll_per_token,
        "bits_per_byte": after.bits_per_byte,
        "untouched_bits_per_byte": before.bits_per_byte,
        "bits_change": after.bits_per_byte - before.bits_per_byte,
    }


def _task_rows(label: str, after: Scores, before: Scores) -> list[Row]:
    return [
        {
            "run": label,
            "task": task,
            "metric": metric,
            "examples": score.examples,
            "score": score.value,
            "stderr": score.stderr,
            "untouched_score": before[task, metric].value,
            "score_change": score.value - before[task, metric].value,
        }
        for (task, metric), score in after.items()
    ]


def _note(run: Run, change: float, window: int) -> str:
    note = (
        f"{run.label}: {nll_change(change)} nats a token beside its untouched backbone, "
        f"in windows of {window} tokens of {tokenizer_name(run.catalog_lm.settings)}'s "
        f"tokenizer that overlap by half; freeze: {run.catalog_lm.settings.freeze}"
    )
    if not run.pretrained:
        note += "; it started from random weights, and had no language to keep"
    return f"{note}."


def _notes(settings: LanguageSettings) -> list[str]:
    notes = [
        "Models read text alone, in float32; untouched: the decoder that a run started from, "
        "before any training here. A change is the run's figure less that one's, and 0 is exact."
    ]
    if settings.text:
        notes.append(
            f"The text is {Path(settings.text).name}, whole. nll: nats a token, which compares "
            "between runs of one tokenizer; bits per byte of UTF-8 compare between all."
        )
    if settings.lm_eval:
        part = f"at most {settings.lm_eval_limit} examples" if settings.lm_eval_limit else "all"
        notes.append(f"Tasks are lm_eval's, with its own prompts and metrics; {part} of each.")
    return notes
