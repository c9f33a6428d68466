"""What a recommender gives, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from recbole_idiomoe.data.catalog import Catalog

if TYPE_CHECKING:  # it imports transformers, seconds that models without a language need not wait
    from recbole_idiomoe.models.language.catalog_lm import CatalogLM

Scorer = Callable[..., torch.Tensor]
"""Makes scores ``(histories, item_num)`` of histories of item rows, and of a query if given."""


class Recommendation(NamedTuple):
    """One recommended item."""

    item_id: str
    title: str
    score: float


class Ranker(Protocol):
    """What a session needs of a :class:`~recbole_idiomoe.recommend.recommender.Recommender`."""

    catalog: Catalog
    scorer: Scorer
    catalog_lm: CatalogLM | None

    def ranked(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        exclude_seen: bool,
        query: str | None,
        scorer: Scorer,
    ) -> list[list[Recommendation]]:
        """The ``k`` best items after each history, by the scores of ``scorer``."""
