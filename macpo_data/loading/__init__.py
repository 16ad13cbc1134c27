"""Loading a recipe: from its name to validated values; and writing one.

May import methods, which know what they need, recipe, and what lies below.
"""
