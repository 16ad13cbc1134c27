# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A round, from Python
#
# This is a notebook in plain text. Jupyter opens it with jupytext (`pip install jupytext`, then
# *Open With, Notebook*); `python examples/a_round.py` runs it as it is.
#
# The fake engine writes words by chance: every step is real but the models, and it takes seconds.
# Take the line `engine.name` out for the embedded world's own small models, which takes minutes.

# %%
from pathlib import Path

import polars as pl
import vl_convert

import macpo

run = macpo.open_run(
    "quickstart",
    settings={
        "engine.name": "fake",
        "data.limit": 30,
    },
    quiet=True,
)
macpo.steps(run).select("round", "kind", "learner", "behavior", "state")

# %% [markdown]
# Round 0 fine-tunes every agent on good answers, and its negative twin on bad ones. In round 1 the
# student learns from the teachers' answers, and each teacher from the student's.

# %%
for number in (0, 1):
    folders = macpo.make(run, number)
    print(f"round {number}: {len(folders)} results, the last in {folders[-1]}")

# %% [markdown]
# A round is a table. `chosen` is the teachers' answer that the student finds least perplexing,
# `rejected` is what the student's negative twin wrote.

# %%
pairs = macpo.read_round(run, 1)
candidates = macpo.read_round(run, 1, table="candidates")
pairs.select("chosen_agent", "chosen_perplexity", "rejected_perplexity").describe()

# %% [markdown]
# Whose answers were chosen? With as many candidates each, a teacher that is chosen more often than
# the others is one that the student believes already.

# %%
chosen = candidates.group_by("agent").agg(
    candidates=pl.len(), chosen=pl.col("selected").sum(), perplexity=pl.col("perplexity").median()
)
chosen.sort("agent")

# %% [markdown]
# The picture: perplexities of the candidates under the student, those that were chosen apart.

# %%
points = candidates.drop_nulls("perplexity").select("agent", "perplexity", "selected")
picture = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
    "width": 420,
    "height": 160,
    "data": {"values": points.to_dicts()},
    "mark": {"type": "tick", "thickness": 2},
    "encoding": {
        "x": {"field": "perplexity", "type": "quantitative", "scale": {"zero": False}},
        "y": {"field": "agent", "type": "nominal", "title": None},
        "color": {"field": "selected", "type": "nominal", "title": "chosen"},
    },
}
svg = Path("perplexities.svg")
svg.write_text(vl_convert.vegalite_to_svg(picture), "utf-8")

# %% [markdown]
# The held-out prompts say whether the student got better; the world brings its own judge.

# %%
scores = macpo.evaluate(run, agents=["student"])
scores.filter(behavior="positive").select("round", "mean", "low", "high", "prompts")

# %%
run.close()
