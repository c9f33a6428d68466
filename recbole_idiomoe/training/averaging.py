"""An exponential moving average of the weights that train (EMA, Polyak averaging)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Means of a model's trained weights, beside the weights themselves.

    The mean starts as the weights are then, whose share after t updates is ``decay ** t``. The
    usual warm-up of the decay, ``min(decay, (1 + t) / (10 + t))``, is for weights that start at
    random: it would be rid at once of the pretrained weights and text vectors that ours start as.

    PyTorch's ``AveragedModel`` would copy frozen weights as well, several times as many as train
    where a backbone is frozen, and handle each weight by itself before every update.

    Args:
        model: whose weights that train are averaged, each once, however many modules share it.
        decay: share of the mean that an update keeps, in (0, 1).

    Attributes:
        weights: those that are averaged, in the order of ``model.parameters()``.
        means: one a weight.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.means = [weight.detach().clone() for weight in self.weights]
        self._move = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Move the means towards the weights: one operator for all, and no wait for the device."""
        self._move(self.means, self.weights, None)

    def load(self, means: Sequence[torch.Tensor]) -> None:
        """Take over the means of an earlier training of the same model."""
        for mean, saved in zip(self.means, means, strict=True):
            mean.copy_(saved)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the means inside, and after it, whatever happens, its weights again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Weights and means change places, each once, also where weights are tied.

        Their contents do: the storage of weights that are cut over processes is not to be moved.
        """
        for mean, weight in zip(self.means, self.weights, strict=True):
            held = weight.detach().clone()
            weight.copy_(mean)
            mean.copy_(held)
