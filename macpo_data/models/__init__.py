"""Bases and adapters as torch models: loading, chat templates, log-probabilities, processes.

Heavy imports stay inside functions. May import world, recipe, schema, errors.
"""
