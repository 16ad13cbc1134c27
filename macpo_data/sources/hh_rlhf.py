"""Anthropic HH-RLHF: raw text of two whole conversations, or parquet with message lists."""

from __future__ import annotations

import polars as pl

from macpo_data.recipe.data import Columns, FileData, More
from macpo_data.sources.rows import need, rows

_TURN = "\x1e"  # a control character that no text has; one that had it would be put aside


def read(raw: pl.DataFrame, settings: FileData | More, path: str) -> pl.DataFrame:
    """The rows, taken from the raw text unless there is a column of prompts."""
    if "prompt" not in raw.columns:
        sides = ["chosen", "rejected"]
        need(raw, sides, path, text=True)
        raw = raw.with_columns(dialogue(pl.col(side)).alias(side) for side in sides)
    return rows(raw, Columns(), path)


def dialogue(text: pl.Expr) -> pl.Expr:
    """Take HH's "Human: ... Assistant: ..." text apart; text before the first turn has no role."""
    text = "\n\n" + text.cast(pl.String).str.strip_chars_start()
    marked = text.str.replace_all(r"\n\n(Human|Assistant):", f"{_TURN}${{1}}:").str.split(_TURN)
    turn, speaker = pl.element(), r"^(Human|Assistant):"
    roles = {"Human": "user", "Assistant": "assistant"}
    role = turn.str.extract(speaker).replace_strict(roles, default="none")
    content = turn.str.replace(speaker, "")
    return marked.list.eval(pl.struct(role=role, content=content).filter(turn != ""))
