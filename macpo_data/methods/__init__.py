"""The methods, MACPO and what it is compared with: a file each. `registry` finds them.

May import generation, store, plan, recipe, schema, errors.
"""
