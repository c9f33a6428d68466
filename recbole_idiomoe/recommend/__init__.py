"""Recommendations from a trained model: ``load(FOLDER).recommend([item ids])``."""

from recbole_idiomoe.recommend.recommender import Recommendation, Recommender, load

__all__ = ["Recommendation", "Recommender", "load"]
