"""Recommendations from a trained model: ``load(FOLDER).recommend([item ids])``.

python -m recbole_idiomoe.recommend FOLDER --history=ID,ID --k=10
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from recbole_idiomoe.base.errors import CheckpointError, DataError, SettingError
from recbole_idiomoe.base.run_folder import write_run
from recbole_idiomoe.data.catalog import Catalog, check_history
from recbole_idiomoe.protocol.loader import users_at_once
from recbole_idiomoe.recommend.recommendation import Recommendation, Scorer
from recbole_idiomoe.recommend.session import Session

if TYPE_CHECKING:
    from recbole_idiomoe.models.language.catalog_lm import CatalogLM

logger = logging.getLogger(__name__)


class Recommender:
    """A trained model and its catalogue.

    Args:
        catalog: the items.
        scorer: histories of item rows, and a query if there is one, to scores of shape
            ``(histories, item_num)``.
        max_history: most recent items that are read.
        run: model and settings, as :func:`~recbole_idiomoe.base.run_folder.read_run` gives them.
        catalog_lm: the model, if it is a language model.
    """

    def __init__(
        self,
        catalog: Catalog,
        scorer: Scorer,
        max_history: int,
        run: Mapping[str, Any],
        catalog_lm: CatalogLM | None = None,
    ) -> None:
        self.catalog = catalog
        self.scorer = scorer
        self.max_history = max_history
        self.run = run
        self.catalog_lm = catalog_lm

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
        """The ``k`` items that most likely come next, best first.

        Args:
            history: item ids of the dataset, oldest first; or a list of such histories.
            k: how many; fewer come back if the catalogue has no more.
            exclude_seen: leave out the items of the history.
            query: what the user asks for, in words; a history may then be empty. A model that
                was not trained on queries (``query_share``) reads it all the same, and says so.

        Returns:
            A list of recommendations; for a list of histories, a list for each.

        Raises:
            DataError: items that are not in the catalogue, which are named; an empty history, or
                one that is no list; ``k`` below 1; a query to a model that reads no text.
            CheckpointError: the model's scores are not numbers.
        """
        check_history(history)
        single = not any(isinstance(part, list | tuple | np.ndarray) for part in history)
        histories: Sequence[Any] = [history] if single else history
        lists = self.ranked(histories, k, exclude_seen, query, self.scorer)
        return lists[0] if single else lists

    def session(self, history: Sequence[str] = ()) -> Session:
        """One user whose history grows, each time computing only what is new of it.

        Args:
            history: item ids of the dataset, oldest first; there may be none yet.

        Raises:
            DataError: items that are not in the catalogue, which are named.
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
        """:meth:`recommend` for a list of histories, by the scores of any ``scorer``.

        Scores stay on the device that they are made on, so many at once as its memory is
        meant to hold.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise DataError(f"k={k!r:.60}: a whole number, at least 1, is wanted.")
        rows = [self.catalog.rows(history) for history in histories]
        if query is None and any(len(row) == 0 for row in rows):
            raise DataError("a history is empty; give at least one item id.")
        asked = () if query is None else (self._checked(query),)
        size = users_at_once(self.catalog.item_num)
        lists = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            scores = scorer([row[-self.max_history :] for row in part], *asked).float()
            self._mask(scores, part if exclude_seen else [])
            lists += self._best(scores, k)
        return lists

    def _mask(self, scores: torch.Tensor, seen: Sequence[np.ndarray]) -> None:
        """Rule out the padding item, what cannot be ranked, and the rows ``seen`` by each user."""
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
        """The head of each list, named."""
        best, items = scores.topk(min(k, self.catalog.item_num - 1), dim=1)
        heads = list(zip(best.tolist(), items.tolist(), strict=True))
        if any(math.isnan(score) for best_row, _ in heads for score in best_row[:1]):
            # topk puts nan first.
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

    def _checked(self, query: str) -> str:
        if not isinstance(query, str) or not query.strip():
            raise DataError(f"query={query!r:.60}: some words are wanted, or None.")
        if self.catalog_lm is None:
            raise DataError(f"query: {self.run['model']} reads no text; leave it out.")
        if self.catalog_lm.settings.query_share == 0:
            logger.warning("this model was not trained on queries (query_share: 0)")
        return query

    def add_items(self, items: Sequence[Mapping[str, str]]) -> None:
        """Put new items into the catalogue, from now on recommended and known in histories.

        An item's place among the others follows from its text, as learnt from those that the
        model was trained on. Scores of the others do not change, but of an item that shares its
        semantic ID with a new one. :meth:`save` keeps the result.

        Args:
            items: of each its ``item_id`` and its text, by the roles of the setting
                ``item_text_fields``: ``{"item_id": "X1", "title": "...", "category": "..."}``.

        Raises:
            SettingError: a model that knows items by their histories alone.
            DataError: an item that cannot be added; none is added then.
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
        """Write the model and its catalogue into a new folder, which :func:`load` opens.

        Raises:
            CheckpointError: the folder holds something already.
            SettingError: a model of RecBole's or a baseline, whose folder is what its run left.
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
