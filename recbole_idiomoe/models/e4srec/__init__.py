"""E4SRec."""
