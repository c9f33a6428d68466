"""Options of a run with any model, and the options that every model accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from recbole_idiomoe.base.options import Options, Range, Share
from recbole_idiomoe.models import registry


@dataclass(frozen=True)
class ProtocolOptions(Options):
    """How every model is evaluated; results can be compared only if these are the same."""

    group = "protocol"

    mask_seen: bool = True
    """Mask the items a user has already seen when ranking, for every model (paper: yes; RecBole's
    stock evaluation: no)."""
    cold_start: Annotated[float, Range(0.0, 0.5)] = 0.0
    """Share of the test items that are taken out of all training, validation and test histories, to
    test how new items are found, for every model (paper: 0.05; 0: none) [section B.6.2]."""
    cold_start_epsilon: Share = 0.1
    """Largest share of such items in a ranked list: at 0.1, one of ten [section B.6.2]."""


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """Further measurements."""

    group = "evaluation"

    mix: Literal["TransitionCounter"] | None = None
    """Measure every trained model a second time, mixed with this counter, the counter's weight
    chosen on validation; null: no mix."""
    language_file: str | None = None
    """Text (UTF-8) whose likelihood under our trained models is compared with that under their
    untouched backbones, such as wikitext-2's test part; null: not measured."""


@dataclass(frozen=True)
class RunOptions(ProtocolOptions, EvaluationOptions):
    """Options of a run, except its model's own options."""

    group = "training"

    tuned: str | None = None
    """Folder of tuned settings: MODEL_DATASET.yaml in it, for each model its own, holds below what
    else is given; where --tune=N puts them, tuned/ if null."""


def listed_options() -> tuple[type[Options], ...]:
    """The options that every model accepts, so that one command's settings suit all its models."""
    return (RunOptions, *registry.language_options())


def listed_defaults() -> dict[str, Any]:
    """The defaults of :func:`listed_options`, by name."""
    return {name: value for kind in listed_options() for name, value in kind.defaults().items()}
