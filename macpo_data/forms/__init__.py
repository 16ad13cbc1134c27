"""Preference datasets as other trainers know them: what is in a file, and who can read it.

May import sources, recipe, schema, errors, text.
"""
