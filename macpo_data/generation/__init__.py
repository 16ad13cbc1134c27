"""Dataset generation: samples, scores, judgements, and the choice of chosen and rejected.

`context` is what the author of a method builds with. Knows no method. May import store, engines,
sources, models and what lies below them.
"""
