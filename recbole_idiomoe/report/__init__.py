"""Results as text tables, HTML pages and plots."""
