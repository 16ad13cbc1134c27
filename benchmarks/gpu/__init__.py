"""Measurements on a machine that has a GPU and no network: see README.md here."""
