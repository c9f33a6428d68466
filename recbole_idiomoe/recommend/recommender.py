"""A trained model that recommends, for any histories or in a session with one user."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch

from recbole_idiomoe.base.errors import CheckpointError, DataError, SettingError
from recbole_idiomoe.base.run_folder import write_run
from recbole_idiomoe.data.catalog import Catalog, check_history
from recbole_idiomoe.protocol.loader import users_at_once

if TYPE_CHECKING:  # imports transformers, for seconds, which RecBole's models do not need
    from recbole_idiomoe.models.language.catalog_lm import CatalogLM

logger = logging.getLogger(__name__)

Scorer = Callable[..., torch.Tensor]
"""Computes scores ``(histories, item_num)`` from histories of item rows and an optional query."""


class Recommendation(NamedTuple):
    """One recommended item."""

    item_id: str
    title: str
    score: float


@dataclass(eq=False, repr=False)
class Recommender:
    """A trained model and its catalogue."""

    catalog: Catalog
    scorer: Scorer
    max_history: int
    """The number of most recent items that the model reads."""
    run: Mapping[str, Any]
    """Model and settings, as :func:`~recbole_idiomoe.base.run_folder.read_run` returns them."""
    catalog_lm: CatalogLM | None = None
    """The model, if it is a language model."""

    @property
    def ranks_unseen_items(self) -> bool:
        """Whether items that were not trained on can be ranked, by their text."""
        return self.catalog_lm is not None and self.catalog_lm.ranks_unseen_items

    @overload
    def recommend(
        self, history: list[str], k: int = ..., exclude_seen: bool = ..., query: str | None = ...
    ) -> list[Recommendation]: ...

    @overload
    def recommend(
        self,
        history: list[list[str]],
        k: int = ...,
        exclude_seen: bool = ...,
        query: str | None = ...,
    ) -> list[list[Recommendation]]: ...

    def recommend(
        self,
        history: list[str] | list[list[str]],
        k: int = 10,
        exclude_seen: bool = True,
        query: str | None = None,
    ) -> list[Recommendation] | list[list[Recommendation]]:
        """The ``k`` items that are most likely to come next, best first.

        Args:
            history: item ids of the data set, oldest first; or a list of such histories.
            k: the number of items; fewer are returned if the catalogue has no more.
            exclude_seen: leave out the items of the history.
            query: what the user asks for, in words; a history may then be empty. A model that
                was not trained on queries (``query_share: 0``) reads it too, with a warning.

        Returns:
            A list of recommendations; for a list of histories, a list for each.

        Raises:
            DataError: item ids that are not in the catalogue; an empty history, or one that is
                not a list; ``k`` below 1; a query to a model that reads no text.
            CheckpointError: the model's scores are not numbers.
        """
        check_history(history)
        single = not any(isinstance(part, list | tuple | np.ndarray) for part in history)
        histories: Sequence[Any] = [history] if single else history
        lists = self.ranked(histories, k, exclude_seen, query, self.scorer)
        return lists[0] if single else lists

    def session(self, history: Sequence[str] = ()) -> Session:
        """Start a session with one user, who has the items of ``history``, oldest first.

        Raises:
            DataError: item ids that are not in the catalogue.
        """
        return Session(self, history)

    def ranked(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        exclude_seen: bool,
        query: str | None,
        scorer: Scorer,
    ) -> list[list[Recommendation]]:
        """:meth:`recommend` for a list of histories, by the scores of ``scorer``.

        Scores stay on the device of ``scorer``, which gets as many histories at once as
        :func:`~recbole_idiomoe.protocol.users_at_once.users_at_once` allows.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise DataError(f"k={k!r:.60}: a whole number, at least 1, is wanted.")
        rows = [self.catalog.rows(history) for history in histories]
        if query is None and any(len(row) == 0 for row in rows):
            raise DataError("a history is empty; give at least one item id.")
        queries = () if query is None else (self._checked_query(query),)
        size = users_at_once(self.catalog.item_num)
        lists = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            scores = scorer([row[-self.max_history :] for row in part], *queries).float()
            self._mask(scores, part if exclude_seen else [])
            lists += self._best(scores, k)
        return lists

    def _mask(self, scores: torch.Tensor, seen: Sequence[np.ndarray]) -> None:
        """Mask padding, items that cannot be ranked, and the rows that each user has ``seen``."""
        scores[:, 0] = -torch.inf
        if self.catalog.untrained and not self.ranks_unseen_items:
            untrained = torch.tensor(self.catalog.untrained, device=scores.device)
            scores.index_fill_(1, untrained, -torch.inf)
        if seen:
            users = np.repeat(np.arange(len(seen)), [len(row) for row in seen])
            pairs = torch.from_numpy(np.stack((users, np.concatenate(seen))))
            user, item = pairs.to(scores.device, non_blocking=True)
            scores[user, item] = -torch.inf

    def _best(self, scores: torch.Tensor, k: int) -> list[list[Recommendation]]:
        best, items = scores.topk(min(k, self.catalog.item_num - 1), dim=1)
        heads = list(zip(best.tolist(), items.tolist(), strict=True))
        # topk puts nan first.
        if any(math.isnan(score) for best_row, _ in heads for score in best_row[:1]):
            raise CheckpointError(
                f"{self.run['model']} scores items nan: nothing can be recommended by that; train "
                "it anew with a lower learning_rate or precision: fp32."
            )
        return [
            [
                Recommendation(self.catalog.item_ids[item], self.catalog.titles[item], score)
                for score, item in zip(best_row, item_row, strict=True)
                if score != -torch.inf
            ]
            for best_row, item_row in heads
        ]

    def _checked_query(self, query: str) -> str:
        if not isinstance(query, str) or not query.strip():
            raise DataError(f"query={query!r:.60}: some words are wanted, or None.")
        if self.catalog_lm is None:
            raise DataError(f"query: {self.run['model']} reads no text; leave it out.")
        if self.catalog_lm.settings.query_share == 0:
            logger.warning("this model was not trained on queries (query_share: 0)")
        return query

    def add_items(self, items: Sequence[Mapping[str, str]]) -> None:
        """Add new items to the catalogue, which can then be recommended and be in histories.

        A new item's embedding is predicted from its text, as learnt from the items that the model
        was trained on. The scores of other items do not change, except of items that share their
        semantic ID with a new one. Call :meth:`save` to keep the result.

        Args:
            items: for each item its ``item_id`` and its text, by the roles of the setting
                ``item_text_fields``: ``{"item_id": "X1", "title": "...", "category": "..."}``.

        Raises:
            SettingError: the model knows items only by their histories.
            DataError: an item cannot be added; then none is added.
        """
        if self.catalog_lm is None or not self.ranks_unseen_items:
            raise SettingError(
                f"{self.run['model']} cannot rank items that came after its training: here it "
                "takes nothing from their text. Train a language model with item_init: text, or "
                "TextAttrLLM."
            )
        from recbole_idiomoe.models.language.new_items import add_items

        add_items(self.catalog_lm, items, seed=self.run["settings"]["seed"])
        self.catalog = self.catalog_lm.catalog

    def save(self, folder: str | Path) -> None:
        """Write the model and its catalogue into a new folder, for :func:`recbole_idiomoe.load`.

        Raises:
            CheckpointError: the folder is not empty.
            SettingError: the model is not a language model; the folder of its run has all of it.
        """
        if self.catalog_lm is None:
            raise SettingError(
                f"{self.run['model']} is no language model, and nothing here changes it; copy the "
                "folder of its run."
            )
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise CheckpointError(f"{folder} is there already; name a new folder to save to.")
        self.catalog_lm.save(folder)
        write_run(folder, {**self.run, "folder": str(folder)})


class Session:
    """A user's growing history; a language model computes only its new tokens.

    Attributes:
        history: all items so far, oldest first.
    """

    def __init__(self, recommender: Recommender, history: Sequence[str] = ()) -> None:
        recommender.catalog.rows(history)  # raises for unknown items
        self.history = list(history)
        self._recommender = recommender
        self._scorer = recommender.scorer
        if recommender.catalog_lm is not None:
            from recbole_idiomoe.models.language.history_cache import HistoryCache

            if HistoryCache.serves(recommender.catalog_lm):
                self._scorer = HistoryCache(recommender.catalog_lm).scores

    def add(self, item_id: str) -> None:
        """Append an item to the history.

        Raises:
            DataError: the item is not in the catalogue.
        """
        self._recommender.catalog.rows([item_id])
        self.history.append(item_id)

    def recommend(
        self, k: int = 10, exclude_seen: bool = True, query: str | None = None
    ) -> list[Recommendation]:
        """:meth:`Recommender.recommend` for the history.

        Tokens of the last call are not computed again, unless the history has outgrown what the
        model reads and its start has moved. Models with attention between items or with items of
        several tokens, and RecBole's models, compute all tokens each time.
        """
        [found] = self._recommender.ranked([self.history], k, exclude_seen, query, self._scorer)
        return found
