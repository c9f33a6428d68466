"""What validation found after which epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(result: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as Python's own numbers; none if nothing was evaluated."""
    return {name: float(value) for name, value in (result or {}).items()}


class LearningCurve:
    """Notes what validation found after which epoch, for every trainer of RecBole's or ours.

    Attributes:
        points: ``epoch`` from 1, ``train_loss`` and ``valid``, the metric that selects. They are
            the trainer's ``learning_curve``, which its state keeps for a run that is resumed.
    """

    def __init__(self, trainer: Any) -> None:
        self.points: list[dict[str, float]] = vars(trainer).setdefault("learning_curve", [])
        self._trainer, self._validate = trainer, trainer._valid_epoch
        trainer._valid_epoch = self._note

    def _note(self, *args: Any, **kwargs: Any) -> Any:
        score, result = self._validate(*args, **kwargs)
        losses = self._trainer.train_loss_dict
        if losses:
            epoch = max(losses)
            point = {"epoch": epoch + 1, "train_loss": float(losses[epoch]), "valid": float(score)}
            self.points.append(point)
        return score, result
