"""Benchmarks of lm-evaluation-harness (``lm_eval``) on models in memory."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_idiomoe.analysis.settings import LanguageSettings
from recbole_idiomoe.base.errors import (
    DataError,
    MissingLibraryError,
    SettingError,
    did_you_mean,
    error_line,
)

BATCH_SIZE = 8


class Score(NamedTuple):
    """The score of a model in one metric of one task."""

    value: float
    stderr: float | None
    examples: int | None
    """None for a group of tasks."""


Scores = dict[tuple[str, str], Score]
"""Scores by task and metric, in lm_eval's order."""


class Benchmarks:
    """The tasks that ``settings.lm_eval`` names, loaded with their data.

    Raises:
        MissingLibraryError: lm_eval is not installed.
        SettingError: lm_eval has no such task.
        DataError: a task cannot be loaded, mostly because its data is missing.
    """

    def __init__(self, settings: LanguageSettings) -> None:
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise MissingLibraryError("--lm_eval needs lm_eval: pip install lm_eval") from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.version = str(lm_eval.__version__)
        self._evaluate, self._adapter = lm_eval.simple_evaluate, HFLM
        self._limit = settings.lm_eval_limit or None
        self._manager = TaskManager(include_path=settings.lm_eval_path or None)
        self.names = [name.strip() for name in settings.lm_eval.split(",") if name.strip()]
        known = self._manager.task_index
        for name in self.names:
            if name not in known:
                hint = did_you_mean(name, known, "lm_eval ls tasks")
                raise SettingError(f"--lm_eval: unknown task {name!r}{hint}")
        try:
            self._manager.load(self.names)
        except Exception as error:  # any library may read a task's data
            raise DataError(
                f"--lm_eval={','.join(self.names)} cannot be loaded ({error_line(error)}); "
                "put the data where the task looks for them, or leave it out."
            ) from error

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Scores:
        """The scores of ``model``, in evaluation mode and on its own device.

        A group of tasks is one task if lm_eval aggregates it.
        """
        found = self._evaluate(
            model=self._adapter(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE),
            tasks=self.names,
            task_manager=self._manager,
            limit=self._limit,
            log_samples=False,
        )
        results, parts = found["results"], found["group_subtasks"]
        inner = {part for listed in parts.values() for part in listed}
        scores: Scores = {}
        waiting = [name for name in results if name not in inner]
        while waiting:
            name = waiting.pop(0)
            counts = found["n-samples"].get(name, {})
            if own := _metrics(name, results[name], counts.get("effective")):
                scores |= own
            else:
                waiting = [*parts.get(name, ()), *waiting]
        return scores


def _metrics(task: str, result: dict[str, Any], examples: int | None) -> Scores:
    """Scores from lm_eval's keys, metric and filter: ``acc,none`` and ``acc_stderr,none``."""
    scores: Scores = {}
    for key, value in result.items():
        metric, comma, kind = key.partition(",")
        if comma and isinstance(value, float | int) and not metric.endswith("_stderr"):
            stderr = result.get(f"{metric}_stderr,{kind}")
            spread = float(stderr) if isinstance(stderr, float | int) else None
            name = metric if kind == "none" else f"{metric} ({kind})"
            scores[task, name] = Score(float(value), spread, examples)
    return scores
