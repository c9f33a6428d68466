"""Options of HSTU: the sizes of its authors' runs on public data (2 layers, 1 head), 64 wide."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_idiomoe.base.options import NonNegativeFloat, Options, PositiveInt, Share
from recbole_idiomoe.models.sasrec.options import SASRecCEOptions


@dataclass(frozen=True)
class HSTUOptions(Options):
    """Options of HSTU; the sections are those of its own paper."""

    hidden_size: PositiveInt = 64
    """Width of item vectors and states."""
    n_layers: PositiveInt = 2
    """Layers."""
    n_heads: PositiveInt = 1
    """Attention heads; hidden_size is a multiple of them."""
    dropout_prob: Share = 0.2
    """Dropout of inputs and layers."""
    use_time: bool | None = None
    """Bias attention by the time between items, beside their positions [section 3]; null: where
    timestamps are times and not positions (all below 10,000)."""
    negatives: PositiveInt = 128
    """Uniform draws that each position's target is compared with."""
    temperature: NonNegativeFloat = 0.05
    """What cosines are divided by, above 0."""

    # Both are next-item models on windows, so they are trained and tuned alike.
    recipe = SASRecCEOptions.recipe
    search_space = SASRecCEOptions.search_space
