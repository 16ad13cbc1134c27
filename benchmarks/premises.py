"""What holds before any round 1: `python -m benchmarks.premises RECIPE --seeds 0 1 2`.

A row of Markdown per seed, and their mean. Gold is that of greedy answers to the held-out prompts,
of all of them and, in the embedded world, in brackets of those about each third of the topics. An
answer is right from .9 on. With eval.by=answer gold is 1 of a right answer, and 0 of another. Where
nobody knows what is right, but eval.reward is set, the rewards of bare bases and policies instead.

Round 0, the ceiling and the student's pairs of round 1 are made where they are missing, in the
recipe's own run folder: what was killed goes on, and `macpo run` goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl

from benchmarks.pool import Asked, asked_in, gold
from macpo_data import stats
from macpo_data.errors import MacpoError
from macpo_data.evaluation import gap
from macpo_data.loading.load import load_recipe
from macpo_data.plan import Policy
from macpo_data.schema import Part
from macpo_data.world.grammar import ask_of, third
from macpo_run.rounds import Run
from macpo_run.terminal.progress import progress

RIGHT = 0.9
ALL = "all"
THIRDS = ("0", "1", "2")


def main() -> None:
    """Measure the seeds that a person names, and print the table."""
    measured = over_seeds("What holds before any round 1.", premises, "eval.ceiling=true")
    print(*table([{"seed": seed, **row} for seed, row in measured]), sep="\n")


def over_seeds(
    description: str, measure: Callable[[Run], dict[str, Any]], *always: str
) -> list[tuple[str, dict[str, Any]]]:
    """Measure runs of a recipe, one for each seed, as the command line names them.

    Args:
        description: of the command.
        measure: what is wanted of a run.
        always: settings that every run has.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    wanted = parser.parse_args()
    measured = []
    for seed in wanted.seeds:
        recipe = load_recipe(wanted.recipe, [*wanted.sets, f"seed={seed}", *always])
        with Run(recipe, wanted.runs, progress, lambda line: print(line, file=sys.stderr)) as run:
            measured.append((str(seed), measure(run)))
    return measured


def premises(run: Run) -> dict[str, Any]:
    """Make what is missing before round 1, and measure it: columns of the table.

    Raises:
        MacpoError: the recipe's method has no teachers who write for a student.
    """
    if run.recipe.method != "macpo" or not (run.recipe.has_gold or run.recipe.eval.reward):
        raise MacpoError(
            "premises are those of method macpo in the world, with eval.by=answer or eval.reward"
        )
    if not run.recipe.has_gold:
        return rewarded(run)
    (student,) = run.recipe.students
    run.finish_round(0)
    run.make("gen", 1, student)
    weak, ceiling = gap.ends(run.plan)
    assert ceiling is not None
    learner = Policy(student, "positive", 0)
    answers = run.evaluate([*weak, learner, ceiling]).responses
    in_world = run.recipe.data.source == "world"
    thirds = thirds_of(answers, asked_of(run, "test")) if in_world else pl.lit("")
    answers = answers.with_columns(third=thirds)
    written = {
        policy: answers.filter(agent=policy.agent, behavior=policy.behavior, round=policy.round)
        for policy in (*weak, learner, ceiling)
    }
    (step,) = run.select("gen", 1, student)
    candidates = pl.read_parquet(run.path(step) / "candidates.parquet")
    candidates = candidates.with_columns(gold=gold(candidates, asked_of(run, "d2")))
    signs = (run.store.manifest(run.plan.name(step)) or {})["signs"]
    best = best_of(pl.concat(written[teacher] for teacher in weak))
    return {
        **{teacher.agent: by_third(written[teacher]) for teacher in weak},
        "student": by_third(written[learner]),
        "oracle": by_third(best),
        "ceiling": by_third(written[ceiling]),
        "some teacher right where the student is wrong": helped(written[learner], best),
        "least perplexing right where one is": picked(candidates),
        "same first word": signs["first_word"]["value"],
        "ranked right before training": signs["ranked"]["value"],
    }


def rewarded(run: Run) -> dict[str, Any]:
    """Rewards of greedy answers before round 1, of bare bases and of policies: means, intervals.

    The oracle takes the best of the teachers' answers to each prompt, by the same rewards.
    """
    (student,) = run.recipe.students
    run.finish_round(0)
    weak, ceiling = gap.ends(run.plan)
    assert ceiling is not None
    bare = [Policy(teacher.agent) for teacher in weak] + [Policy(student)]
    policies = [*bare, *weak, Policy(student, "positive", 0), ceiling]
    answers = run.evaluate(policies).responses.sort("prompt_id")
    rewards = {policy: rewards_of(answers, policy) for policy in policies}
    teachers = [rewards[teacher] for teacher in weak]
    best = max(teachers, key=lambda values: float(values.mean()))
    return {
        **{str(policy): stats.mean(values) for policy, values in rewards.items()},
        "oracle": stats.mean(np.max(teachers, axis=0)),
        "ceiling minus the best teacher": stats.mean(rewards[ceiling] - best),
    }


def rewards_of(answers: pl.DataFrame, policy: Policy) -> stats.Values:
    """The reward of a policy's answer to each prompt, in the prompts' order."""
    own = answers.filter(
        pl.col("round").eq_missing(policy.round), agent=policy.agent, behavior=policy.behavior
    )
    return own["reward"].to_numpy()


def asked_of(run: Run, part: Part) -> Asked:
    """What each prompt of a part asks, by its id."""
    return asked_in(run.context().prompts(part))


def thirds_of(answers: pl.DataFrame, asked: Asked) -> pl.Series:
    """Which third of the topics each answer's prompt is about."""
    return pl.Series([str(third(ask_of(asked[i][0]).topic)) for i in answers["prompt_id"]])


def by_third(answers: pl.DataFrame) -> dict[str, float | None]:
    """The mean gold of all answers, and of those about each third of the topics."""
    named = () if set(answers["third"]) == {""} else THIRDS  # outside the world there are none
    parts = {third: answers.filter(third=third) for third in named}
    return {name: _mean(part["gold"].to_list()) for name, part in {ALL: answers, **parts}.items()}


def best_of(answers: pl.DataFrame) -> pl.DataFrame:
    """The oracle: of the answers to each prompt the best one's gold."""
    return answers.group_by("prompt_id", "third", maintain_order=True).agg(pl.col("gold").max())


def helped(answers: pl.DataFrame, best: pl.DataFrame) -> float | None:
    """Of the prompts where an answer is wrong, the share where the best of others is right."""
    both = answers.join(best, on="prompt_id", suffix="_best")
    wrong = both.filter(pl.col("gold") < RIGHT)
    return _mean((wrong["gold_best"] >= RIGHT).to_list())


def picked(candidates: pl.DataFrame) -> float | None:
    """Of the prompts with a right candidate, the share where the selected one is right."""
    right = pl.col("gold") >= RIGHT
    each = candidates.group_by("prompt_id").agg(
        there=right.any(), picked=right.filter(pl.col("selected")).any()
    )
    return _mean(each.filter("there")["picked"].to_list())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown; of several a last one with their means."""
    names = list(rows[0])
    several = [*rows, {n: _means([row[n] for row in rows]) for n in names} | {"seed": "mean"}]
    shown = several if len(rows) > 1 else rows
    cells = [[_cell(row[name]) for name in names] for row in shown]
    return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]


def _means(values: list[Any]) -> Any:
    """The mean of a column, or of each part of its cells; of estimates that between seeds."""
    if isinstance(values[0], stats.Estimate):
        return stats.between(np.array([value.mean for value in values]))
    if isinstance(values[0], dict):
        return {part: _mean([value[part] for value in values]) for part in values[0]}
    return None if isinstance(values[0], str) else _mean(values)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _cell(value: Any) -> str:
    if isinstance(value, stats.Estimate):
        mean, low, high = (f"{bound:+.2f}".replace("0.", ".") for bound in value)
        return f"{mean} ({low} to {high})"
    if isinstance(value, dict):
        every, *thirds = (_cell(each) for each in value.values())
        return f"{every} ({' '.join(thirds)})" if thirds else every
    if isinstance(value, str):
        return value
    return "-" if value is None else f"{value:.2f}".removeprefix("0")


if __name__ == "__main__":
    try:
        main()
    except MacpoError as error:
        sys.exit(f"error: {error}")
