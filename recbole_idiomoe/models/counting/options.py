"""Options of the recommenders that count.

TransitionCounter's are the best of decay .6, .7, .8, reverse .25, .5, .75, damping .2, .25, .3 by
NDCG@10 on validation (the mean share of each set's best): ml-100k, amazon-toys, amazon-beauty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole_idiomoe.base.options import Options, option


@dataclass(frozen=True)
class PopularityOptions(Options):
    """Nothing of Popularity can be set."""

    search_space: ClassVar[Mapping[str, Any] | None] = {}


@dataclass(frozen=True)
class TransitionCounterOptions(Options):
    """Options of TransitionCounter."""

    transition_steps: int = option(
        5, "most steps between two items that count, and items that are read", low=1
    )
    step_decay: float = option(
        0.7, "weight of each further step, and of each item further back", low=0.0
    )
    reverse_weight: float = option(0.5, "weight of a transition taken backwards", low=0.0)
    popularity_damping: float = option(
        0.25, "power of both items' popularity that a count is divided by", low=0.0
    )

    search_space: ClassVar[Mapping[str, Any] | None] = {
        "transition_steps": {"low": 1, "high": 10},
        "step_decay": {"low": 0.3, "high": 1.0},
        "reverse_weight": {"low": 0.0, "high": 1.0},
        "popularity_damping": {"low": 0.0, "high": 0.6},
    }
