"""An exponential moving average (EMA) of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The moving averages of a model's trained weights, kept beside the weights.

    The average starts as the initial weights, whose share after t updates is ``decay ** t``. The
    usual warm-up of the decay, ``min(decay, (1 + t) / (10 + t))``, is for random initial weights;
    it would quickly lose the pretrained weights and text vectors that this package starts from.

    PyTorch's ``AveragedModel`` would also copy the frozen weights, which are most of the weights if
    the backbone is frozen, and would handle every weight by itself.

    Args:
        model: its weights that train are averaged, each once even if several modules share it.
        decay: share of the average that an update keeps, in (0, 1).

    Attributes:
        weights: the weights that are averaged, in the order of ``model.parameters()``.
        means: the average of each weight, with the weight's shape.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.means = [weight.detach().clone() for weight in self.weights]
        self._move = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Move the averages towards the weights, by one operator and without a device sync."""
        self._move(self.means, self.weights, None)

    def load(self, means: Sequence[torch.Tensor]) -> None:
        """Copy the averages of an earlier training of the same model."""
        for mean, saved in zip(self.means, means, strict=True):
            mean.copy_(saved)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages inside the block, and its own weights after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap the contents of weights and averages; the storage of sharded weights must stay."""
        for mean, weight in zip(self.means, self.weights, strict=True):
            held = weight.detach().clone()
            weight.copy_(mean)
            mean.copy_(held)
