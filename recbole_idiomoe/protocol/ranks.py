"""The rank of every test target, saved per user, from which metrics can be computed later.

The rank is taken on the device after padding and seen items are masked; no scores are kept. Ties
are broken as for RecBole's lists (:mod:`recbole_idiomoe.protocol.ties`), so :meth:`Ranks.metric`
gives RecBole's numbers to the last digit, and has no bias at longer lists than those that were
measured.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import IdiomoeError, short_reason
from recbole_idiomoe.base.files import atomic_write
from recbole_idiomoe.protocol.evaluation import Observer, RankedBatch
from recbole_idiomoe.protocol.loader import in_order
from recbole_idiomoe.protocol.ties import TieBreaker

METRICS = ("hit", "recall", "ndcg", "mrr", "map", "precision")
"""RecBole's metrics that follow from the rank of a single target."""


@dataclass(frozen=True)
class Ranks:
    """One entry per test target, in the order of the loader; all arrays are ``(targets,)``."""

    rank: np.ndarray
    """The target's place among the candidates; 1 is the first."""
    history: np.ndarray
    """Items of history that the model is given: at most ``MAX_ITEM_LIST_LENGTH``."""
    popularity: np.ndarray
    """The target's training interactions."""

    def metric(self, name: str) -> np.ndarray:
        """The metric ``name``, such as ``ndcg@10``, of each target: ``(targets,)``.

        RecBole reports the mean.

        Raises:
            IdiomoeError: the metric does not follow from ranks.
        """
        kind, _, cutoff = name.lower().partition("@")
        if not is_ranked(name):
            raise IdiomoeError(f"{name} does not follow from ranks; {', '.join(METRICS)}@K do.")
        found = self.rank <= int(cutoff)
        gain = {
            "hit": 1.0,
            "recall": 1.0,
            "ndcg": 1 / np.log2(self.rank + 1),
            "mrr": 1 / self.rank,
            "map": 1 / self.rank,
            "precision": 1 / int(cutoff),
        }[kind]
        return np.where(found, gain, 0.0)


@dataclass(frozen=True)
class NamedRanks(Ranks):
    """The ranks that a run keeps in its folder, with the ids of users and targets."""

    user: np.ndarray
    """Ids of the users, as in the data."""
    item: np.ndarray
    """Ids of the targets, as in the data."""

    def save(self, path: Path) -> None:
        """Write the arrays to the ``.npz`` file ``path``, atomically."""
        save_arrays(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> NamedRanks:
        """Read a file that :meth:`save` wrote.

        Raises:
            IdiomoeError: the file is missing or holds something else.
        """
        return cls(**load_arrays(path, *(f.name for f in fields(cls))))

    def targets_digest(self) -> str:
        """A hash of the users and their targets, in order."""
        named = "\n".join(np.char.add(np.char.add(self.user, "\t"), self.item))
        return hashlib.sha256(named.encode()).hexdigest()


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write ``arrays`` to the ``.npz`` file ``path``, atomically."""
    with atomic_write(path) as aside, open(aside, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read the arrays ``names`` from a file that :func:`save_arrays` wrote.

    Raises:
        IdiomoeError: the file is missing, lacks one of the arrays, or holds something else.
    """
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise IdiomoeError(f"{path} holds no ranks ({short_reason(error)}).") from error


def is_ranked(metric: str) -> bool:
    """Whether ``metric``, such as ``ndcg@10``, follows from the rank of a single target."""
    kind, _, cutoff = metric.lower().partition("@")
    return kind in METRICS and cutoff.isdigit()


def item_counts(dataset: Any) -> np.ndarray:
    """Interactions of every item in a loaded data set that is not split yet: ``(item_num,)``.

    Users with a single interaction do not count: it is no target and precedes none, so nothing is
    trained on it.
    """
    users, items = (
        np.asarray(dataset.inter_feat[field]) for field in (dataset.uid_field, dataset.iid_field)
    )
    return np.bincount(items[np.bincount(users)[users] > 1], minlength=dataset.item_num)


class RankRecorder(Observer):
    """Records the rank of every target of an evaluation, and saves them at the end.

    Args:
        path: the ``.npz`` file to write.
        popularity: training interactions of every item, shape ``(item_num,)``.
    """

    def __init__(self, path: Path, popularity: np.ndarray) -> None:
        self.path, self.popularity = path, popularity

    def started(self, loader: Any) -> None:
        self._loader, self._dataset, self._ties = loader, loader._dataset, TieBreaker(loader)
        self._ranks: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []

    def ranked(self, batch: RankedBatch) -> None:
        targets = batch.targets.to(batch.scores.device)
        # The ranks stay on the device, so that the host waits for it only once, at the end.
        self._ranks.append(ranks_among(self._ties.keys(batch.scores), targets))
        known = (self._dataset.uid_field, self._dataset.item_list_length_field)
        user, length = (batch.interaction[field].cpu().long() for field in known)
        self._rows.append(torch.stack((user, batch.targets.cpu().long(), length), dim=1))

    def finished(self) -> None:
        users, items, lengths = in_order(torch.cat(self._rows), self._loader).T.numpy()
        dataset = self._dataset
        ranks = NamedRanks(
            user=np.asarray(dataset.id2token(dataset.uid_field, users), dtype=str),
            item=np.asarray(dataset.id2token(dataset.iid_field, items), dtype=str),
            rank=in_order(torch.cat(self._ranks), self._loader).cpu().numpy(),
            history=lengths,
            popularity=self.popularity[items],
        )
        distributed.from_main(lambda: ranks.save(self.path))


def ranks_among(keys: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The rank of each target, from 1; a masked target is behind all items.

    Args:
        keys: what :class:`~recbole_idiomoe.protocol.ties.TieBreaker` makes of the scores, shape
            ``(n, item_num)``.
        targets: the targets, shape ``(n,)``.

    Returns:
        Shape ``(n,)``.
    """
    return (keys >= keys.gather(1, targets[:, None])).sum(dim=1)
