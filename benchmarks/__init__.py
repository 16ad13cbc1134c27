"""Measurements, run by `make bench`; their rows are kept in RESULTS.md."""
