"""TIGER."""
