"""Bases that are made on this machine before they are loaded: from a GGUF file, from another base.

Only names, places and headers: nothing heavy is imported. May import world and errors.
"""
