"""What an epoch trains on: first item tokens alone, then more text (section B.5, item 8)."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_idiomoe.models.language.options import LanguageModelOptions


@dataclass(frozen=True)
class Curriculum:
    """Which share of the sequences of each epoch has text or a query, and when to evaluate.

    Epochs are numbered from 0.
    """

    settings: LanguageModelOptions
    epochs: int
    """Number of epochs in all."""
    eval_step: int
    """Number of epochs between evaluations; 0: only the last epoch is evaluated."""

    def text_share(self, epoch: int) -> float:
        """Share of the training sequences that have text, in [0, 1]; 0 without ``use_text``.

        It is 0 for the first ``item_warmup`` of the epochs, rises linearly until ``text_ramp`` of
        the epochs are over, and then stays 1. The last epoch always has text unless
        ``item_warmup`` is 1, because ranking reads text.
        """
        warmup, ramp = self.settings.item_warmup, self.settings.text_ramp
        start, end = round(warmup * self.epochs), round(ramp * self.epochs)
        if warmup < 1:
            start = min(start, self.epochs - 1)
        if epoch < start or not self.settings.use_text:
            return 0.0
        return 1.0 if epoch + 1 >= end else (epoch + 1 - start) / (end - start)

    def query_share(self, epoch: int) -> float:
        """Share of the training sequences that end in a query; 0 during the warm-up."""
        return 0.0 if self._warms_up(epoch) else self.settings.query_share

    def is_evaluated(self, epoch: int) -> bool:
        """Whether to validate after ``epoch``; not in the warm-up, because ranking reads text."""
        if epoch + 1 == self.epochs:
            return True
        is_due = self.eval_step > 0 and (epoch + 1) % self.eval_step == 0
        return is_due and not self._warms_up(epoch)

    def may_stop_after(self, epoch: int) -> bool:
        """Whether early stopping counts ``epoch``, which had as much text as ranking reads."""
        return self.text_share(epoch) == self.text_share(self.epochs)

    def _warms_up(self, epoch: int) -> bool:
        return self.settings.use_text and self.text_share(epoch) == 0
