"""Tables of many runs: rows, data sets and seeds."""
