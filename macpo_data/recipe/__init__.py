"""The recipe (configuration of a run), section by section, with each key's meaning.

`draft` is a recipe that is not checked yet; `loading` reads one. May import prompts and world.
"""
