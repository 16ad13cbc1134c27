"""Studies: variants of a recipe, run in one folder and compared in one table."""
