"""Leaderboards: many models' runs, kept for good, and tables, statistics and pictures of them."""
