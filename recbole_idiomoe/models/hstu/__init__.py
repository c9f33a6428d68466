"""HSTU."""
