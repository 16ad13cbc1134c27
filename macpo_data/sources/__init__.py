"""Source datasets: each gives the same splits (d1, d2, test, probe) with the same columns.

May import world, recipe, schema, errors, text.
"""
