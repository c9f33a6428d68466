"""One user, whose history grows between recommendations."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_idiomoe.recommend.recommendation import Ranker, Recommendation


class Session:
    """A history and, for a language model that allows it, what was computed of it already.

    Args:
        recommender: whose model and catalogue are used.
        history: item ids of the dataset, oldest first; there may be none yet.

    Attributes:
        history: all items so far, oldest first.

    Raises:
        DataError: items that are not in the catalogue.
    """

    def __init__(self, recommender: Ranker, history: Sequence[str] = ()) -> None:
        recommender.catalog.rows(history)
        self.history = list(history)
        self._recommender = recommender
        self._scorer = recommender.scorer
        if recommender.catalog_lm is not None:
            from recbole_idiomoe.models.language.history_cache import HistoryCache

            if HistoryCache.serves(recommender.catalog_lm):
                self._scorer = HistoryCache(recommender.catalog_lm).scores

    def add(self, item_id: str) -> None:
        """Append the item that the user has had now.

        Raises:
            DataError: it is not in the catalogue.
        """
        self._recommender.catalog.rows([item_id])
        self.history.append(item_id)

    def recommend(
        self, k: int = 10, exclude_seen: bool = True, query: str | None = None
    ) -> list[Recommendation]:
        """What :meth:`Recommender.recommend` gives for the history, and raises.

        Only tokens that were not there at the last call are computed, but where the history has
        outgrown what the model reads and its start has moved. Models with attention between
        items or items of several tokens, and RecBole's, compute all of it.
        """
        [found] = self._recommender.ranked([self.history], k, exclude_seen, query, self._scorer)
        return found
