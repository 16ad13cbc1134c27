"""What runs a model to write and to score: one file for each engine, behind one protocol.

May import models, recipe, schema, errors.
"""
