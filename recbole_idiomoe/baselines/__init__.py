"""Baselines of ours, for those that RecBole lacks or has in a weaker form, or too slowly."""
