"""Datasets in: every source gives the same parts (d1, d2, test, probe) in the same columns.

May import world, recipe, schema, errors, text.
"""
