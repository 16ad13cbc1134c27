"""Writes datasets: samples, scores and judgements, each made once, and who becomes chosen.

`context` is what the author of a method builds with. Knows no method. May import store, engines,
sources, models and what lies below them.
"""
