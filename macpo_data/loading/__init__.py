"""From a recipe's name to its valid values: its file, mistakes between fields, and writing it.

May import methods, which know what they need, recipe, and what lies below.
"""
