"""Scores answers of a frame at once, without a run in which the scores are kept."""

from __future__ import annotations

import polars as pl

from macpo_data.engines.choose import open_engine
from macpo_data.engines.protocol import ScoreRequest, Voice
from macpo_data.generation.shards import perplexity
from macpo_data.models.base import Base
from macpo_data.models.worker import Report
from macpo_data.recipe.engine import Engine as Settings
from macpo_data.schema import SCORES

_SCORED = [name for name in SCORES if name != "perplexity"]


def score(
    report: Report, settings: Settings, base: Base, voice: Voice, rows: pl.DataFrame
) -> pl.DataFrame:
    """How likely a voice finds each answer.

    Args:
        report: hears how many are done.
        settings: of the engine.
        base: that speaks.
        voice: its adapter and template.
        rows: prompt (MESSAGES), response, finish_reason. Those without an answer have no score.

    Returns:
        SCORES, a row for each.
    """
    rows = rows.with_row_index()
    asked = rows.filter(pl.col("response").fill_null("") != "")
    # Prompts of like length share a batch, and all answers to one are together.
    chars = pl.col("prompt").list.eval(pl.element().struct["content"].str.len_chars()).list.sum()
    asked = asked.sort(chars, "index")
    requests = [
        ScoreRequest(voice, row["prompt"], row["response"], row["finish_reason"] == "stop",
                     str(n // settings.shard_size))
        for n, row in enumerate(asked.iter_rows(named=True))
    ]  # fmt: skip
    engine = open_engine(settings, base)
    scores: dict[int, tuple[float | int | None, ...]] = {}
    for done, (i, each) in enumerate(engine.score(requests), 1):
        values = None if each is None else vars(each)
        scores[i] = tuple(values[name] if values else None for name in _SCORED)
        report(done, len(requests), "answers")
    columns = {name: SCORES[name] for name in _SCORED}
    frame = pl.DataFrame([scores[i] for i in range(len(requests))], schema=columns, orient="row")
    scored = asked.select("index").with_columns(frame)
    whole = rows.select("index", "finish_reason").join(
        scored, on="index", how="left", maintain_order="left"
    )
    return whole.with_columns(perplexity=perplexity()).select(SCORES.keys())
