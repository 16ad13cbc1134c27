"""Which ranking of teachers' answers picks right: `python -m benchmarks.picks RECIPE --seeds 0 1`.

A row of Markdown per seed, and their mean: the gold of the answers that each ranking would pick of
round 1's candidates, of all prompts and, in brackets, of each third of the world's topics.

- learner: most likely, per token, to the student; what MACPO does.
- peers: to the teachers who did not write it (`select.under: peers`).
- panel: to both.
- contrast: how much likelier it is to the student, or to those teachers, than to its negative twin.

What is missing before round 1 is made in the recipe's own run folder. No method sees gold.
"""

from __future__ import annotations

import sys
from typing import Any

import polars as pl

from benchmarks.pool import gold
from benchmarks.premises import asked_of, by_third, over_seeds, table, thirds_of
from macpo_data.errors import MacpoError
from macpo_data.plan import Behavior, Policy
from macpo_data.schema import SAMPLES
from macpo_run.rounds import Run


def main() -> None:
    """Measure the seeds that a person names, and print the table."""
    measured = over_seeds("Which ranking of the teachers' answers picks right.", picks)
    print(*table([{"seed": seed, **row} for seed, row in measured]), sep="\n")


def picks(run: Run) -> dict[str, Any]:
    """Make what is missing of the student's pairs of round 1, and rank their candidates anew.

    Raises:
        MacpoError: the recipe's method has no teachers who write for a student.
    """
    if run.recipe.method != "macpo" or run.recipe.data.source != "world":
        raise MacpoError("picks are those of method macpo in the embedded world")
    (student,) = run.recipe.students
    run.finish_round(0)
    run.make("gen", 1, student)
    (step,) = run.select("gen", 1, student)
    candidates = pl.read_parquet(run.path(step) / "candidates.parquet")
    asked = asked_of(run, "d2")
    texts = candidates.select(SAMPLES.keys())
    context = run.context()

    def per_token(agent: str, behavior: Behavior) -> pl.Series:
        scored = context.score(texts, under=Policy(agent, behavior, 0))
        return -scored["perplexity"].log()

    agents = [*run.recipe.teachers, student]
    likely = {agent: per_token(agent, "positive") for agent in agents}
    contrast = {agent: likely[agent] - per_token(agent, "negative") for agent in agents}
    columns = {"gold": gold(candidates, asked), "third": thirds_of(candidates, asked)}
    return by_ranking(candidates.with_columns(**columns), student, likely, contrast)


def by_ranking(
    candidates: pl.DataFrame,
    student: str,
    likely: dict[str, pl.Series],
    contrast: dict[str, pl.Series],
) -> dict[str, dict[str, float | None]]:
    """The gold of what each ranking picks.

    Args:
        candidates: prompt_id, agent, gold, third.
        student: who learns.
        likely: by agent, the log-probability per token of each candidate.
        contrast: by agent, the same without what its negative twin gives it.
    """

    def of_peers(scores: dict[str, pl.Series]) -> pl.Expr:
        others = [
            pl.when(pl.col("agent") != agent).then(values)
            for agent, values in scores.items()
            if agent != student
        ]
        return pl.mean_horizontal(others)

    teachers = len(likely) - 2  # those who did not write it
    rankings: dict[str, pl.Expr] = {
        "learner": pl.lit(likely[student]),
        "peers": of_peers(likely),
        "panel": of_peers(likely) * teachers + likely[student],
        "learner's contrast": pl.lit(contrast[student]),
        "peers' contrast": of_peers(contrast),
        "learner and peers' contrast": of_peers(contrast) + likely[student],
        "the best": pl.col("gold"),
    }
    gold_of = {name: picked(candidates, ranking) for name, ranking in rankings.items()}
    return {**gold_of, "all candidates": by_third(candidates)}


def picked(candidates: pl.DataFrame, ranking: pl.Expr) -> dict[str, float | None]:
    """The gold of each prompt's highest candidate, the first of equal ones; unread ones are out."""
    ranked = candidates.with_columns(_ranks=ranking).drop_nulls("_ranks")
    ranked = ranked.sort("_ranks", descending=True, maintain_order=True)
    return by_third(ranked.unique("prompt_id", keep="first", maintain_order=True))


if __name__ == "__main__":
    try:
        main()
    except MacpoError as error:
        sys.exit(f"error: {error}")
