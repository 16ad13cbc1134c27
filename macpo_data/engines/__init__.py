"""Inference engines that generate and score: one file per engine, one protocol for all.

May import models, recipe, schema, errors.
"""
