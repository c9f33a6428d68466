"""The settings of a run: read, merged and checked."""
