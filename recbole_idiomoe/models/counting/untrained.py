"""Recommenders that are counted, not trained, and their way through RecBole's trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from recbole.utils import InputType


class UntrainedRecommender(SequentialRecommender):
    """A model whose buffers are filled from the training split as it is built.

    So RecBole's ``ItemKNN`` and ``EASE`` are built too; its ``Pop`` counts in a loss of zeros. The
    second that it takes is no training time of the run.
    """

    input_type = InputType.POINTWISE

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the interactions' own items, shape ``(batch,)``."""
        items = interaction[self.ITEM_ID].unsqueeze(1)
        return self.full_sort_predict(interaction).gather(1, items).squeeze(1)


class UntrainedTrainer(Trainer):  # type: ignore[misc]
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
