"""Recommendations from a trained model: ``load(FOLDER).recommend([item ids])``."""

from recbole_idiomoe.recommend.loading import load
from recbole_idiomoe.recommend.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender", "load"]
