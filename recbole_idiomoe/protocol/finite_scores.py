"""An evaluation fails if a score is nan, because RecBole's ``topk`` would rank it first."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.protocol.evaluation import Observer


class FiniteScores(Observer):
    """Fails an evaluation in which the model gave an item the score nan.

    It checks the scores before items are masked. The marks stay on the device until the end, so
    that the host waits for it only once.

    Args:
        model: the name of the model, for the message.
        dataset: any split of the run, for the ids of the users.
    """

    def __init__(self, model: str, dataset: Any) -> None:
        self.model, self.dataset = model, dataset

    def started(self, loader: Any) -> None:
        self._users: list[torch.Tensor] = []
        self._faulty: list[torch.Tensor] = []

    def predicted(self, interaction: Interaction, scores: torch.Tensor) -> None:
        # amax passes nan on, and needs no mask as large as the scores.
        rows = scores.detach().reshape(len(interaction), -1)
        self._faulty.append(rows.amax(dim=1).isnan())
        self._users.append(interaction[self.dataset.uid_field])

    def finished(self) -> None:
        """Raises:
        IdiomoeError: a score was nan; the message names the model and the first such user.
        """
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
