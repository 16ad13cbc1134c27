"""Where MoAA's gain comes from: `python -m benchmarks.mixing RECIPE --seeds 0 1 2`.

Tables of Markdown, a row for each seed and one of means. Gold is in brackets by third of the
topics; differences are paired by prompt, with 95 % intervals over prompts, and between seeds in the
last row.

Majority is the answer most like the others to its prompt: the highest mean chrF against each of
them (minimum Bayes risk decoding). Beside the gold judge, who never errs, two that do pick from the
same answers: a reward model trained on D1's human pairs, which knows D1's prompts but none of these
answers, and the likelihood of the student's bare base. The best proposer is the one with the best
mean on these very prompts; what is best of 3 of one agent is picked by gold.

Both rounds are made where they are missing, in the recipe's own run folder.
"""

from __future__ import annotations

import sys
from typing import Any

import polars as pl
from sacrebleu.metrics.chrf import CHRF

from benchmarks.pool import Asked, asked_in, gold
from benchmarks.premises import asked_of, by_third, over_seeds, table, thirds_of
from macpo_data import stats
from macpo_data.errors import MacpoError
from macpo_data.generation import mixture as mixtures
from macpo_data.generation import select
from macpo_data.generation.run_context import RunContext
from macpo_data.plan import Policy
from macpo_data.recipe.evaluation import TRAINED, RewardModel
from macpo_run.policies import train_reward
from macpo_run.rounds import Run

JUDGES = {"gold": "gold", "reward": "reward model", "likelihood": "likelihood"}
Row = dict[str, Any]


def main() -> None:
    """Measure the seeds that a person names, and print the tables."""
    tables: dict[str, list[Row]] = {}
    for seed, rows in over_seeds("Where MoAA's gain comes from.", mixing):
        for title, row in rows.items():
            tables.setdefault(title, []).append({"seed": seed, **row})
    for title, each in tables.items():
        print(f"{title}:", "", *table(each), "", sep="\n")


def mixing(run: Run) -> dict[str, Row]:
    """Make what is missing of both rounds, and measure it: a row of each table.

    Raises:
        MacpoError: the recipe has no one layer of proposers in the embedded world.
    """
    mixture = run.recipe.mixture
    if run.recipe.method != "moaa" or run.recipe.data.source != "world":
        raise MacpoError("this measures method moaa on data.source world; try moaa_quickstart")
    if mixture is None or len(mixture.layers) != 1 or mixture.keep != "best":
        raise MacpoError(
            "this measures one layer of proposers; set mixture.keep=best and one mixture.layers"
        )
    for round_ in (0, 1):
        run.finish_round(round_)
    train_reward(run)
    return {
        **first_stage(run),
        "Round 1: the student's answers to D2": second_stage(run),
        "Held-out prompts, as `macpo eval` measures": held_out(run),
        "Held-out prompts, sampled as for pairs": held_out(as_sampled(run)),
    }


def as_sampled(run: Run) -> Run:
    """The same run, measured by answers that are sampled as the student's are for its pairs."""
    recipe = run.recipe
    sampling = recipe.sampling.model_copy(update={"n": 1})
    measured = recipe.eval.model_copy(update={"sampling": sampling})
    return run.beside(recipe.model_copy(update={"eval": measured}))


def first_stage(run: Run) -> dict[str, Row]:
    """What the proposers and the aggregator answered, and what each way to choose takes of it."""
    (student,), mixture, context = run.recipe.students, run.recipe.mixture, run.context()
    assert mixture is not None
    (step,) = run.select("gen", 0, student)
    turns = run.store.read(run.plan.name(step), "turns.parquet")
    candidates = run.store.read(run.plan.name(step), "candidates.parquet")
    candidates = candidates.filter(pl.col("selected").any().over("prompt_id"))
    turns = turns.join(candidates, on="prompt_id", how="semi", maintain_order="left")
    prompts = asked_in(turns)
    candidates = graded(candidates, prompts)
    pool = judged(context, written(candidates), turns, student)
    proposers = {agent: candidates.filter(agent=agent) for agent in mixture.layers[0]}
    best = max(proposers, key=lambda agent: by_third(proposers[agent])["all"] or 0.0)

    def ask(agent: str, rows: pl.DataFrame, draw: int = 0) -> pl.DataFrame:
        (answers,) = context.ask([(Policy(agent), rows)], mixture.sampling, "mixing", draw)
        return answers.with_columns(turns["prompt_id"])

    def best_of_own(agent: str) -> pl.DataFrame:
        """As many answers of one agent as there are proposers, picked by gold."""
        draws = pl.concat(ask(agent, turns, draw) for draw in range(len(proposers)))
        return pick(written(graded(select.competing(draws, run.recipe.select), prompts)), "gold")

    texts = candidates.group_by("prompt_id").agg("response")
    answered = turns.join(texts, on="prompt_id", maintain_order="left")
    aggregations = [
        mixtures.aggregation(mixture, prompt, [text for text in answers if text])
        for prompt, answers in answered.select("prompt", "response").iter_rows()
    ]
    aggregated = graded(ask(student, mixtures.as_rows(aggregations)), prompts)
    alone = graded(ask(student, turns), prompts)
    majority = pick(pool, "likeness")
    picks = {f"picked by {name}": pick(pool, judge) for judge, name in JUDGES.items()}
    own = {
        f"best of {len(proposers)} of the {name}": best_of_own(agent)
        for name, agent in (("best proposer", best), ("student's base", student))
    }
    choices = {"one at random": pool, "majority": majority, **picks, **own}
    differences = {
        f"{name} - {other}": difference(rows, other_rows)
        for name, rows in picks.items()
        for other, other_rows in (("best proposer", proposers[best]), ("majority", majority))
    }
    differences["majority - best proposer"] = difference(majority, proposers[best])
    differences |= {
        f"picked by gold - {name}": difference(picks["picked by gold"], rows)
        for name, rows in own.items()
    }
    differences["aggregator - told nothing"] = difference(aggregated, alone)
    return {
        "Round 0: answers to D1": {
            "prompts": str(len(turns)),
            **{agent: by_third(rows) for agent, rows in proposers.items()},
            "aggregator": by_third(aggregated),
            "aggregator, told nothing": by_third(alone),
        },
        "Round 0: choosing among answers": {n: by_third(rows) for n, rows in choices.items()},
        "Round 0: differences": {"best proposer": best, **differences},
    }


def second_stage(run: Run) -> Row:
    """The student's own answers where they became a pair, and what each way to choose takes."""
    (student,) = run.recipe.students
    (step,) = run.select("gen", 1, student)
    candidates = run.store.read(run.plan.name(step), "candidates.parquet")
    pairs = run.store.read(run.plan.name(step), "pairs.parquet")
    candidates = candidates.join(pairs, on="prompt_id", how="semi", maintain_order="left")
    prompts = asked_of(run, "d2")
    pool = judged(run.context(), written(graded(candidates, prompts)), pairs, student)
    best = graded(pairs.select("prompt_id", response="chosen"), prompts)
    worst = graded(pairs.select("prompt_id", response="rejected"), prompts)
    majority = pick(pool, "likeness")
    picks = {JUDGES[judge]: pick(pool, judge) for judge in ("reward", "likelihood")}
    return {
        "pairs": str(len(pairs)),
        "mean": by_third(pool),
        "majority": by_third(majority),
        "chosen": by_third(best),
        "rejected": by_third(worst),
        **{f"picked by {judge}": by_third(rows) for judge, rows in picks.items()},
        "chosen - majority": difference(best, majority),
        **{f"{judge} - majority": difference(rows, majority) for judge, rows in picks.items()},
    }


def held_out(run: Run) -> Row:
    """Every proposer, the student's bare base, and the student after both rounds."""
    (student,), mixture = run.recipe.students, run.recipe.mixture
    assert mixture is not None
    bare, *rounds = (Policy(student, round=round_) for round_ in (None, 0, 1))
    policies = [*map(Policy, mixture.layers[0]), bare, *rounds]
    responses = run.evaluate(policies).responses
    responses = responses.with_columns(third=thirds_of(responses, asked_of(run, "test")))
    names = {policy: policy.agent for policy in policies} | {bare: f"{student}, bare"}
    names |= {policy: f"{student}, round {policy.round}" for policy in rounds}
    answers = {
        name: responses.filter(
            pl.col("agent") == policy.agent, pl.col("round").eq_missing(policy.round)
        )
        for policy, name in names.items()
    }
    best = max(mixture.layers[0], key=lambda agent: by_third(answers[agent])["all"] or 0.0)
    first, second = (answers[names[policy]] for policy in rounds)
    return {
        **{name: by_third(rows) for name, rows in answers.items()},
        "round 0 - best proposer": difference(first, answers[best]),
        "round 0 - bare": difference(first, answers[names[bare]]),
        "round 1 - round 0": difference(second, first),
    }


def graded(answers: pl.DataFrame, prompts: Asked) -> pl.DataFrame:
    """Answers with their gold score and the third of the topics that they are about."""
    return answers.with_columns(gold=gold(answers, prompts), third=thirds_of(answers, prompts))


def written(candidates: pl.DataFrame) -> pl.DataFrame:
    """What no filter caught. A text that two agents wrote counts twice: it is two votes."""
    return candidates.filter(pl.col("reason").fill_null("duplicate_answer") == "duplicate_answer")


def judged(
    context: RunContext, answers: pl.DataFrame, prompts: pl.DataFrame, student: str
) -> pl.DataFrame:
    """Answers with what each way to choose goes by: likeness, reward, likelihood.

    Args:
        context: of the run.
        answers: CANDIDATES.
        prompts: prompt_id, prompt.
        student: whose bare base tells how likely an answer is.
    """
    asked = prompts.select("prompt_id", "prompt")
    rows = answers.select("prompt_id", "response", "finish_reason")
    rows = rows.join(asked, on="prompt_id", maintain_order="left")
    return answers.with_columns(
        likeness=likeness(answers),
        reward=context.rewards(rows, RewardModel(model=TRAINED)),
        likelihood=-context.score(rows, under=Policy(student))["perplexity"],
    )


def likeness(answers: pl.DataFrame) -> pl.Series:
    """How like an answer is to the others of its prompt: mean chrF against each; null if alone."""
    chrf = CHRF()
    one = answers.select("prompt_id", "response").with_row_index("at")
    both = one.join(one, on="prompt_id", suffix="_other").filter(pl.col("at") != pl.col("at_other"))
    texts = both.select("response", "response_other").iter_rows()
    scores = [chrf.sentence_score(text, [other]).score for text, other in texts]
    both = both.with_columns(likeness=pl.Series(scores, dtype=pl.Float64))
    means = both.group_by("at").agg(pl.col("likeness").mean())
    return one.join(means, on="at", how="left", maintain_order="left")["likeness"]


def pick(answers: pl.DataFrame, by: str) -> pl.DataFrame:
    """The answer to each prompt with the highest value of a column; of equal ones the first."""
    order = answers.sort(by, descending=True, nulls_last=True, maintain_order=True)
    return order.unique("prompt_id", keep="first", maintain_order=True)


def difference(one: pl.DataFrame, other: pl.DataFrame) -> stats.Estimate:
    """By how much gold is higher in one than in the other, paired by prompt."""
    both = one.join(other.select("prompt_id", other="gold"), on="prompt_id")
    return stats.mean((both["gold"] - both["other"]).to_numpy())


if __name__ == "__main__":
    try:
        main()
    except MacpoError as error:
        sys.exit(f"error: {error}")
