"""The ways to write an item in tokens (setting ``item_tokens``)."""
