"""Conversion of the public Amazon review dumps (2014, 2018, 2023) to atomic files."""
