"""Formats of preference datasets, and which trainers can read each of them.

A file for each trainer says what it can read, in which form macpo publishes data for it, and what a
person types; `registry` lists them. The card, the published tree and `macpo check` stand on that.

May import sources, recipe, schema, errors, text.
"""
