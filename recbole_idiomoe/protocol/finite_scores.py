"""Scores that are not numbers are refused: RecBole's ``topk`` would rank them first."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.protocol.evaluation import Observer


class FiniteScores(Observer):
    """Fails an evaluation in which the model scored an item nan.

    It looks at the scores before anything is masked. What it finds stays on the device, so that
    the host waits once, at the end.

    Args:
        model: the name of the model, for the message.
        dataset: any split of the run; it knows the ids of the users.
    """

    def __init__(self, model: str, dataset: Any) -> None:
        self.model, self.dataset = model, dataset
        self._users: list[torch.Tensor] = []
        self._faulty: list[torch.Tensor] = []

    def started(self, loader: Any) -> None:
        self._users, self._faulty = [], []

    def predicted(self, interaction: Interaction, scores: torch.Tensor) -> None:
        # A maximum passes nan on, and needs no marks as large as the scores.
        rows = scores.detach().reshape(len(interaction), -1)
        self._faulty.append(rows.amax(dim=1).isnan())
        self._users.append(interaction[self.dataset.uid_field])

    def finished(self) -> None:
        """Raises:
        IdiomoeError: a score was nan; it names the model and the first of the users.
        """
        if not self._faulty:
            return
        found = torch.cat(self._faulty).cpu()
        own = torch.cat([part.cpu() for part in self._users])[found]
        rows = torch.cat(distributed.gathered(own)).unique()
        if not len(rows):
            return
        first = self.dataset.id2token(self.dataset.uid_field, int(rows[0]))
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        raise IdiomoeError(
            f"{self.model} scores items nan for user {first!s}{others}: nothing can be ranked by "
            "that; lower learning_rate, or set clip_grad_norm: {max_norm: 1.0} or precision: fp32."
        )
