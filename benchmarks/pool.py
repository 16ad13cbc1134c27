"""What selection had to choose from, by gold: `python -m benchmarks.pool runs/RUN ...`.

Gold is what the embedded world's judge says, or with eval.by=answer whether an answer is right.
On other data `--reward FOLDER` takes a reward model's scores in its place, those of a sequence
classifier that brings a chat template. Per variant, seed and round of the student: mean gold of all
candidates, of what became chosen, of the best possible, of the rejected, and of what the student
writes on the same prompts after, where it was asked; how many pairs there are, in how many the
chosen answer is the better one, the worse one, the better one by topic alone, and the likelier one
before training (ranked), and how the training ended. No step of a method sees this.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.reward_model import scorer_of
from macpo_data.generation.gold import Prompt, worth
from macpo_data.generation.reward_model import rewards
from macpo_data.methods.registry import called
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.section import digest
from macpo_data.world import judge
from macpo_run.terminal.progress import progress

KEYS = {
    "positives": "mutual",
    "negatives": "once",
    "negatives_by": "fine_tuning",
    "frozen_teachers": False,
    "dpo.reference": "previous",
    "dpo.beta": 0.1,
    "dpo.gamma": 0.2,
    "dpo.learning_rate": 5e-4,
    "select.min_chars": 1,
    "select.under": "learner",
    "select.order": "lowest",
    "data.label_noise": 0.0,
}


Asked = dict[str, tuple[Prompt, str | None]]  # prompt and right answer, by the prompt's id


def asked_in(prompts: pl.DataFrame) -> Asked:
    """What the prompts of a part ask; a right answer is there where its recipe names the column."""
    right = pl.col("right") if "right" in prompts.columns else pl.lit(None, pl.String)
    rows = prompts.select("prompt_id", "prompt", right.alias("right")).iter_rows()
    return {prompt_id: (prompt, right) for prompt_id, prompt, right in rows}


def gold(frame: pl.DataFrame, asked: Asked, column: str = "response") -> pl.Series:
    """The gold score of each row's response."""
    rows = frame.select("prompt_id", column).iter_rows()
    return pl.Series([worth(*asked[i], text or "") for i, text in rows], dtype=pl.Float64)


def measure(prompts: pl.DataFrame, model: Path | None) -> Callable[..., pl.Series]:
    """What scores the answers to a part's prompts: gold, or the reward model of a folder."""
    if model:
        return partial(rewarded, prompts=prompts, model=model)
    return partial(gold, asked=asked_in(prompts))


def rewarded(
    frame: pl.DataFrame, prompts: pl.DataFrame, model: Path, column: str = "response"
) -> pl.Series:
    """The reward of each row's response."""
    ended = "finish_reason" if column == "response" else f"{column}_finish_reason"
    rows = frame.select("prompt_id", response=pl.col(column), finish_reason=pl.col(ended))
    rows = rows.join(prompts.select("prompt_id", "prompt"), "prompt_id", maintain_order="left")
    with progress(f"scoring {len(rows)} answers") as report:
        return pl.Series(rewards(report, Engine(), scorer_of(model), rows), dtype=pl.Float64)


def on_topic(frame: pl.DataFrame, asked: Asked, column: str) -> pl.Series:
    """How far each row's response answers what was asked, whatever its tone; null of no world's."""
    rows = [(*asked[i], text) for i, text in frame.select("prompt_id", column).iter_rows()]
    values = [None if right is not None else judge.gold(prompt, text or "").on_topic
              for prompt, right, text in rows]  # fmt: skip
    return pl.Series(values, dtype=pl.Float64)


def better_by_topic(pairs: pl.DataFrame, asked: Asked) -> pl.Series:
    """Whether the chosen answer of each pair is the better one by topic alone."""
    chosen, rejected = (on_topic(pairs, asked, side) for side in ("chosen", "rejected"))
    return chosen > rejected


def variant(facts: dict[str, Any]) -> str:
    """The method, the keys that are not as MACPO has them, and a digest of all but the seed."""
    recipe = facts["recipe"]
    teachers = sum(agent["role"] == "teacher" for agent in recipe["agents"].values())
    changed = [] if teachers == 3 else [f"teachers={teachers}"]
    for path, default in KEYS.items():
        part, _, key = path.rpartition(".")
        if (value := (recipe[part] if part else recipe).get(key, default)) != default:
            changed.append(f"{path}={value}")
    judge = recipe["judge"] or {}
    others = digest({key: value for key, value in recipe.items() if key != "seed"})[:4]
    return " ".join([called(facts["method"], judge.get("kind")), *changed, f"#{others}"])


def rounds_of(run: Path, model: Path | None = None) -> list[dict[str, Any]]:
    """One row per round that a run's student was trained on pairs.

    Args:
        run: its folder.
        model: folder of a reward model, whose scores stand in place of gold.
    """
    wrote = {}
    for manifest in run.glob("samples/student-positive-*-d2-0-*/manifest.json"):
        wrote[json.loads(manifest.read_text("utf-8"))["adapter"]] = manifest.parent / "shards"
    rows = []
    for manifest in sorted(run.glob("*/student-positive-*/manifest.json")):
        if manifest.parent.parent.name not in ("adapters", "checkpoints"):
            continue
        facts = json.loads(manifest.read_text("utf-8"))
        if facts["objective"] != "dpo":
            continue
        (prompts,) = (run / name for name in facts["inputs"] if name.startswith("data/round"))
        built = json.loads((prompts / "manifest.json").read_text("utf-8"))
        (source,) = (run / name for name in built["inputs"] if name.startswith("data/prompts"))
        d2 = pl.read_parquet(source / "d2.parquet")
        scores = measure(d2, model)
        pool = pl.read_parquet(prompts / "candidates.parquet")
        pool = pool.with_columns(gold=scores(pool))
        pairs = pl.read_parquet(prompts / "pairs.parquet")
        sides = {side: scores(pairs, column=side) for side in ("chosen", "rejected")}
        topic = None if model else better_by_topic(pairs, asked_in(d2)).mean()
        after = wrote.get(f"{manifest.parent.parent.name}/{manifest.parent.name}")
        last = facts["history"][-1]
        rows.append(
            {
                "variant": variant(facts),
                "seed": facts["recipe"]["seed"],
                "round": facts["round"],
                "pairs": len(pairs),
                "pool": pool["gold"].mean(),
                "chosen": sides["chosen"].mean(),
                "best": pool.group_by("prompt_id").agg(pl.col("gold").max())["gold"].mean(),
                "rejected": sides["rejected"].mean(),
                "right": (sides["chosen"] > sides["rejected"]).mean(),
                "wrong": (sides["chosen"] < sides["rejected"]).mean(),
                "by topic": topic,
                "ranked": (pairs["chosen_perplexity"] < pairs["rejected_perplexity"]).mean(),
                "after": scores(pl.read_parquet(after / "*.parquet")).mean() if after else None,
                "accuracy": last["accuracy"],
                "margin": last["margin"],
            }
        )
    return rows


def main() -> None:
    """Print a row for each round of each run, and the means over seeds."""
    parser = argparse.ArgumentParser(description="What selection had to choose from.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--reward", type=Path, help="folder of a reward model")
    asked = parser.parse_args()
    table = pl.DataFrame([row for run in asked.runs for row in rounds_of(run, asked.reward)])
    means = table.group_by("variant", "round", maintain_order=True).agg(
        pl.len().alias("seeds"), pl.exclude("seed").mean()
    )
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_width_chars=200, float_precision=3):
        print(table.sort("variant", "seed", "round"), means.sort("variant", "round"), sep="\n")


if __name__ == "__main__":
    main()
