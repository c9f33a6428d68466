"""The settings of each analysis of ``python -m recbole_idiomoe.analysis``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from recbole_idiomoe.base.errors import SettingError

_LEAST = dict.fromkeys(("tau", "histories", "lm_eval_limit", "item_share"), 0)
_LEAST |= dict.fromkeys(("k", "prompts", "distances", "batch_size", "repeats"), 1)
_LEAST |= dict.fromkeys(("prompt_tokens", "length"), 2)
_MOST = {"k": 256, "tau": 1, "item_share": 1}


def _setting(default: Any, help: str) -> Any:
    """A field for HfArgumentParser, which passes its metadata to ``add_argument``."""
    kind = type(default[0] if isinstance(default, list) and default else default)
    metavar = {int: "N", float: "N", bool: "True"}.get(kind, "TEXT")
    metadata = {"help": help, "metavar": metavar}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of every analysis.

    Raises:
        SettingError: a number is out of range.
    """

    out: str = _setting("", "folder for the files; empty: analysis/ in the first run's folder")
    device: str = _setting("", "where to compute: cpu, cuda ...; empty: a GPU if there is one")
    data_path: str = _setting("", "folder of the data sets, if it has moved since the run")

    def __post_init__(self) -> None:
        for each in fields(self):
            low, high = _LEAST.get(each.name, -math.inf), _MOST.get(each.name, math.inf)
            given = getattr(self, each.name)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, int | float) and not low <= value <= high:
                    span = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                    raise SettingError(f"--{each.name}={value} is out of range; give {span}.")


@dataclass(frozen=True)
class FfnMemorySettings(AnalysisSettings):
    """Settings of ``ffn-memory`` (paper, sections 3.3 and 4.3)."""

    k: int = _setting(20, "items and text tokens nearest to a neuron that count (1 to 256)")
    tau: float = _setting(0.5, "purity from which a neuron counts as clustered (0 to 1)")
    category_field: str = _setting(
        "",
        "column of the .item file that holds the categories; empty: the one whose role in "
        "item_text_fields is category, else item_attribute",
    )
    category_level: int = _setting(
        -1,
        "an item's category: 1 the first of its entries, 2 the second (or the last, if it has "
        "fewer) ...; -1 the last, which ends a path; 0 all of them as one",
    )
    neuron: list[str] = _setting(
        [],
        "neurons to show with their items and tokens, as LAYER:NEURON, both from 0; none: the "
        "purest of each expert",
    )


@dataclass(frozen=True)
class AttentionSettings(AnalysisSettings):
    """Settings of ``attention`` (paper, section B.6.3)."""

    text: str = _setting(
        "", "text file (UTF-8) to read, cut into prompts; empty: the prompts that come with it"
    )
    prompts: int = _setting(64, "prompts that are cut from it at most")
    prompt_tokens: int = _setting(128, "tokens of a prompt at most")
    distances: int = _setting(64, "how far back the distance profile goes, in tokens")
    histories: int = _setting(
        64, "test users, evenly spaced, whose histories show attention to items; 0: none"
    )
    histories_file: str = _setting(
        "", "histories to read instead: a text file, item ids on a line, oldest first: ID,ID"
    )


@dataclass(frozen=True)
class LanguageSettings(AnalysisSettings):
    """Settings of ``language`` (paper, section 3.1)."""

    text: str = _setting("", "text file (UTF-8) whose likelihood is measured; empty: none")
    lm_eval: str = _setting(
        "",
        "benchmarks of lm-evaluation-harness (pip install lm_eval), whose data must be in reach, "
        "separated by commas: hellaswag,winogrande,mmlu,bbh",
    )
    lm_eval_path: str = _setting("", "folder with benchmarks of one's own, as lm_eval reads them")
    lm_eval_limit: int = _setting(0, "examples of each benchmark at most; 0: all")


@dataclass(frozen=True)
class EfficiencySettings(AnalysisSettings):
    """Settings of ``efficiency`` (paper, Table 12)."""

    length: list[int] = _setting([256, 512, 1024], "tokens of a sequence, one or several")
    batch_size: int = _setting(8, "sequences in a batch")
    item_share: float = _setting(0.2, "share of the tokens that are items (0 to 1)")
    repeats: int = _setting(5, "times that each step is measured, after one that is not")


@dataclass(frozen=True)
class ReportSettings(EfficiencySettings, LanguageSettings, AttentionSettings, FfnMemorySettings):
    """Settings of ``report``: the settings of all its analyses."""

    text: str = _setting(
        "",
        "text file (UTF-8) that language is measured on, and attention too; empty: no language, "
        "and attention on the prompts that come with it",
    )
    efficiency: bool = _setting(False, "measure time and memory too")
