"""What an epoch trains on: item tokens alone, then more and more text (section B.5, item 8)."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_idiomoe.models.language.options import LanguageModelOptions


@dataclass(frozen=True)
class Curriculum:
    """Which sequences of an epoch carry text or end in a query, and what follows from it.

    Epochs are numbered from 0.
    """

    settings: LanguageModelOptions
    epochs: int
    """In all."""
    eval_step: int
    """Epochs from one evaluation to the next; 0: the last one's alone."""

    def text_share(self, epoch: int) -> float:
        """Share of the sequences with text; past the last epoch, that of use."""
        settings = self.settings
        if not settings.use_text:
            return 0.0
        return text_share(epoch, self.epochs, settings.item_warmup, settings.text_ramp)

    def query_share(self, epoch: int) -> float:
        """Share of the sequences with a query; warm-up is on items alone."""
        return 0.0 if self._warms_up(epoch) else self.settings.query_share

    def is_evaluated(self, epoch: int) -> bool:
        """Ranking reads text: before any was trained on, there is nothing to learn from it."""
        if epoch + 1 == self.epochs:
            return True
        is_due = self.eval_step > 0 and (epoch + 1) % self.eval_step == 0
        return is_due and not self._warms_up(epoch)

    def may_stop_after(self, epoch: int) -> bool:
        """Patience is for models that train as in use."""
        return self.text_share(epoch) == self.text_share(self.epochs)

    def _warms_up(self, epoch: int) -> bool:
        return self.settings.use_text and self.text_share(epoch) == 0


def text_share(epoch: int, epochs: int, warmup: float, ramp: float) -> float:
    """Share of training sequences that carry text.

    The first ``warmup`` of the epochs see item tokens alone; then the share rises linearly
    until ``ramp`` of the epochs are over, and stays 1. However few epochs there are, the last one
    has text, which ranking reads, unless ``warmup`` is all of them.

    Args:
        epoch: from 0.
        epochs: in all.
        warmup, ramp: shares of ``epochs``, ``warmup <= ramp``.
    """
    start, end = round(warmup * epochs), round(ramp * epochs)
    if warmup < 1:
        start = min(start, epochs - 1)
    if epoch < start:
        return 0.0
    return 1.0 if epoch + 1 >= end else (epoch + 1 - start) / (end - start)
