"""How every model is evaluated: candidates, metrics, and what else is recorded on the way."""
