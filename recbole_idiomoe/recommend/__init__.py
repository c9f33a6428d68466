"""Recommendations from a trained model: ``load(FOLDER).recommend([item ids])``."""

from recbole_idiomoe.recommend.loading import load
from recbole_idiomoe.recommend.recommendation import Recommendation
from recbole_idiomoe.recommend.recommender import Recommender

__all__ = ["Recommendation", "Recommender", "load"]
