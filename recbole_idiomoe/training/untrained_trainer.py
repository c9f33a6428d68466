"""The way of a recommender that is only counted through RecBole's trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from recbole_idiomoe.training.recbole_trainer import ResumableTrainer


class UntrainedTrainer(ResumableTrainer):
    """RecBole's trainer for a model without parameters: it validates once and saves.

    ``TraditionalTrainer``, RecBole's own, runs an epoch of zero losses for the same.
    """

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        # Of nothing: RecBole's checkpoints want the state of one.
        optimizer: torch.optim.Optimizer = super()._build_optimizer(params=[{"params": []}])
        return optimizer

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Arguments and result as of RecBole's ``Trainer.fit``; there are no epochs."""
        self.eval_collector.data_collect(train_data)
        if valid_data is not None:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(
                valid_data, show_progress=show_progress
            )
            if callback_fn:
                callback_fn(0, self.best_valid_score)
        if saved:
            self._save_checkpoint(-1, verbose=verbose)
        return self.best_valid_score, self.best_valid_result
