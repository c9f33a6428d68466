"""Search for settings on validation, with the same number of trials for every model."""

from recbole_idiomoe.tuning.search import tune
from recbole_idiomoe.tuning.table import table

__all__ = ["table", "tune"]
