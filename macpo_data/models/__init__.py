"""Base models and adapters in torch: loading, chat templates, log-probabilities, workers.

Heavy imports stay inside functions. May import world, recipe, schema, errors.
"""
