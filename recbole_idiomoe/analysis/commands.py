"""The analyses by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recbole_idiomoe.analysis.attention import attention
from recbole_idiomoe.analysis.efficiency import efficiency
from recbole_idiomoe.analysis.ffn_memory import ffn_memory
from recbole_idiomoe.analysis.language import language
from recbole_idiomoe.analysis.results import Analysis
from recbole_idiomoe.analysis.settings import (
    AnalysisSettings,
    AttentionSettings,
    EfficiencySettings,
    FfnMemorySettings,
    LanguageSettings,
)

PROGRAM = "python -m recbole_idiomoe.analysis"


class Command(NamedTuple):
    """One analysis: its function on the folders of runs, and the class of its settings."""

    compute: Callable[[Sequence[Path], Any], Analysis]
    settings: type[AnalysisSettings]
    help: str


COMMANDS: dict[str, Command] = {
    "ffn-memory": Command(
        ffn_memory,
        FfnMemorySettings,
        "what each FFN neuron points to: items or text, of one category or many",
    ),
    "attention": Command(
        attention,
        AttentionSettings,
        "where each layer attends: on text, beside the untouched backbone, and between items",
    ),
    "language": Command(
        language,
        LanguageSettings,
        "how likely a text is, and what benchmarks say, beside the untouched backbone",
    ),
    "efficiency": Command(
        efficiency,
        EfficiencySettings,
        "time and memory of a step, beside the same decoder without what was added",
    ),
}
