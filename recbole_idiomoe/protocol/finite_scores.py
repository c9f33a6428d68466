"""Scores that are no numbers are not evaluated: RecBole's ``topk`` would rank them first."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import IdiomoeError


def refuse_nan(trainer: Any, dataset: Any) -> None:
    """Have every evaluation of ``trainer``, RecBole's or ours, fail if a score was nan.

    Scores are looked at as the model gives them, before anything is masked, wherever they go
    from there. What is found stays on the device: the host waits once, at the end.

    Args:
        dataset: any split of the run's; it knows the users by name.
    """
    model, evaluate = trainer.model, trainer.evaluate
    users: list[torch.Tensor] = []
    faulty: list[torch.Tensor] = []

    def watched(predict: Any) -> Any:
        def noted(interaction: Interaction, *args: Any) -> torch.Tensor:
            scores: torch.Tensor = predict(interaction, *args)
            # A maximum hands on nan, and needs no memory for marks as large as the scores.
            rows = scores.detach().reshape(len(interaction), -1)
            faulty.append(rows.amax(dim=1).isnan())
            users.append(interaction[dataset.uid_field])
            return scores

        return noted

    def evaluated(*args: Any, **kwargs: Any) -> Any:
        users.clear()
        faulty.clear()
        result = evaluate(*args, **kwargs)
        _check(trainer.config["model"], dataset, users, faulty)
        return result

    model.full_sort_predict = watched(model.full_sort_predict)
    model.predict = watched(model.predict)
    trainer.evaluate = evaluated


def _check(model: str, dataset: Any, users: list[torch.Tensor], faulty: list[torch.Tensor]) -> None:
    """No user is faulty.

    Raises:
        IdiomoeError: one is; it names the model and the first of them.
    """
    if not faulty:
        return
    found = torch.cat(faulty).cpu()
    own = torch.cat([part.cpu() for part in users])[found]
    rows = torch.cat(distributed.gathered(own)).unique()
    if not len(rows):
        return
    first = dataset.id2token(dataset.uid_field, int(rows[0]))
    others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    raise IdiomoeError(
        f"{model} scores items nan for user {first!s}{others}: nothing can be ranked by that; "
        "lower learning_rate, or set clip_grad_norm: {max_norm: 1.0} or precision: fp32."
    )
