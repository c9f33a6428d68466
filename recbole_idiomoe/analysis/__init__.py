"""Analyses of trained models: ``python -m recbole_idiomoe.analysis NAME FOLDER``."""
