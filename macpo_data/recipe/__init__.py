"""The recipe: what a person types, section by section, with each key's meaning under its field.

`draft` is a recipe that is not checked yet; `loading` reads one. May import prompts and world.
"""
