"""The store on disk: results with their manifests, their states, and the pins in lock.json.

May import plan, sources, models, recipe, schema, errors.
"""
