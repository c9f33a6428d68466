"""CoVE."""
