"""What ``backbone`` may be besides a folder or a name on the Hugging Face hub."""

BUNDLED = "bundled"
UNTRAINED = "untrained"
