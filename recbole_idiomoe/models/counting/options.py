"""Options of the recommenders that count.

TransitionCounter's defaults have the best NDCG@10 on validation, as the mean share of each data
set's best, on ml-100k, amazon-toys and amazon-beauty, of decay .6, .7, .8, reverse .25, .5, .75 and
damping .2, .25, .3.
"""

from __future__ import annotations

from dataclasses import dataclass

from recbole_idiomoe.base.options import NonNegativeFloat, Options, PositiveInt


@dataclass(frozen=True)
class PopularityOptions(Options):
    """Popularity has no options."""

    search_space = {}


@dataclass(frozen=True)
class TransitionCounterOptions(Options):
    """Options of TransitionCounter."""

    transition_steps: PositiveInt = 5
    """Largest number of steps between two items that count, and of items that are read."""
    step_decay: NonNegativeFloat = 0.7
    """Weight of each further step, and of each item further back."""
    reverse_weight: NonNegativeFloat = 0.5
    """Weight of a transition in the reverse direction."""
    popularity_damping: NonNegativeFloat = 0.25
    """Power of both items' popularity that a count is divided by."""

    search_space = {
        "transition_steps": {"low": 1, "high": 10},
        "step_decay": {"low": 0.3, "high": 1.0},
        "reverse_weight": {"low": 0.0, "high": 1.0},
        "popularity_damping": {"low": 0.0, "high": 0.6},
    }
