"""RecBole recommenders, one file each."""
