"""What the setting ``backbone`` may be besides a folder or a name on the Hugging Face hub."""

BUNDLED = "bundled"
"""idiom-mini, the small pretrained decoder that comes with this package."""
UNTRAINED = "untrained"
"""A decoder of idiom-mini's architecture with random weights."""
