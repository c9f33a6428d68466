"""Recommenders that count and are not trained."""
