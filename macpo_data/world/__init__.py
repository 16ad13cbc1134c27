"""The embedded world: generated prompts, good and bad answers, and a judge that is never wrong.

May import nothing of macpo but errors.
"""
