"""Studies: variants of a recipe, made in one folder and compared in one table."""
