"""What selection had to choose from, by the gold judge: `python -m benchmarks.pool runs/RUN ...`.

Per round of the student: mean gold of all candidates, of the picked (lowest perplexity), of the
best possible and the worst pick (highest perplexity), of the rejected, and of what the student
writes on the same prompts before and after. No step of the method sees these numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data import world


def gold(frame: pl.DataFrame, asked: dict[str, Any], column: str = "response") -> pl.Series:
    """The gold score of each row's response."""
    rows = frame.select("prompt_id", column).iter_rows()
    return pl.Series([world.gold(asked[i], text or "").score for i, text in rows])


def rounds_of(run: Path) -> list[dict[str, Any]]:
    """One row per round of a run's student."""
    prompts = pl.read_parquet(next(run.glob("data/prompts-*/d2.parquet")))
    asked = dict(zip(prompts["prompt_id"], prompts["prompt"].to_list(), strict=True))
    rows = []
    for manifest in sorted(run.glob("adapters/*-positive-*/manifest.json")):
        facts = json.loads(manifest.read_text("utf-8"))
        if facts["objective"] != "dpo" or "student" not in facts["learner"]:
            continue
        (data,) = (run / name for name in facts["inputs"] if name.startswith("data/"))
        pool = pl.read_parquet(data / "candidates.parquet")
        pool = pool.with_columns(gold=gold(pool, asked))
        pairs = pl.read_parquet(data / "pairs.parquet")
        by_prompt = pool.sort("perplexity").group_by("prompt_id", maintain_order=True)
        after = pl.read_parquet(
            next(run.glob(f"samples/{facts['learner']}-positive-{facts['round']}-d2-*/shards"))
            / "*.parquet"
        )
        last = facts["history"][-1]
        rows.append(
            {
                "run": run.name,
                "round": facts["round"],
                "pool": pool["gold"].mean(),
                "picked": pool.filter("selected")["gold"].mean(),
                "best": by_prompt.agg(pl.col("gold").max())["gold"].mean(),
                "highest": by_prompt.agg(pl.col("gold").last())["gold"].mean(),
                "rejected": gold(pairs, asked, "rejected").mean(),
                "student after": gold(after, asked).mean(),
                "accuracy": last["accuracy"],
                "margin": last["margin"],
            }
        )
    return rows


if __name__ == "__main__":
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_width_chars=160, float_precision=3):
        print(pl.DataFrame([row for run in sys.argv[1:] for row in rounds_of(Path(run))]))
