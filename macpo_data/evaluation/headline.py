"""Summary of a run on one screen, for the terminal and for the top of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from macpo_data.errors import StoreError
from macpo_data.evaluation import gap, probe
from macpo_data.evaluation.advice import IN_SHORT, advise
from macpo_data.evaluation.measures import BY_PROMPT
from macpo_data.evaluation.probe import Reading
from macpo_data.evaluation.results import Evaluation, unmeasured
from macpo_data.evaluation.signs import of_evaluation
from macpo_data.evaluation.verdict import (
    Rows,
    Verdict,
    measure_of,
    name_baseline,
    of_agent,
    verdict,
)
from macpo_data.generation.answers import RIGHT_ANSWERS
from macpo_data.plan import Plan
from macpo_data.recipe.recipe import Recipe
from macpo_data.schema import RESPONSES, Message, empty
from macpo_data.signs.rules import Signs, flags
from macpo_data.stats import evenly
from macpo_data.store.store import Store
from macpo_data.text import json_number

ROUNDS = 5  # columns of the table at most, so that it fits a narrow terminal
EXAMPLES = 3
CEILING = "student trained on good answers"
# Signs in the student's newest answers on which a person has to act.
ACTIONS = {
    "cut": "{value:.0f} % of the student's answers are cut before their end: raise "
    "sampling.max_new_tokens",
    "loops": "{value:.0f} % of the student's answers repeat themselves: lower dpo.learning_rate",
    "short": "{value:.0f} % of the student's answers have three words or fewer: read some of them "
    "before you go on",
}
FELL = "in round {round} the student's answers are worse than in an earlier one: compare the scores"
STRAYS = "from round {round} on the student strays from what people wrote: keep a round before it"
UNMEASURED = "round {round} is not evaluated yet: what stands here is of earlier rounds"


@dataclass(frozen=True)
class ScoreRow:
    """The mean scores of one agent."""

    name: str
    means: list[float | None]  # by round, as the table's rounds; None: not measured


@dataclass(frozen=True)
class ScoreTable:
    """Student, teachers and ceiling by round."""

    meaning: str  # what a score is
    rounds: list[int]
    rows: list[ScoreRow]


@dataclass(frozen=True)
class Answer:
    """What the student wrote after a round, and how good that is."""

    round: int
    text: str | None  # None: nothing was written
    score: float | None  # None: nobody scored it


@dataclass(frozen=True)
class Example:
    """A held-out prompt with the student's answer of its first and of its last round."""

    prompt: list[Message]
    answers: list[Answer]


@dataclass(frozen=True)
class Headline:
    """The summary of a run; its answers are in `examples`."""

    verdict: Verdict
    table: ScoreTable | None  # None: nothing was measured
    gap: str | None  # None: there is no ceiling, or there are no teachers
    unmeasured: str | None  # that the newest round is not among the scores
    warnings: list[str]  # on which a person has to act
    advice: str | None  # what is worth running after round 0; later there is none
    signs: list[str]  # all signs of failure, for the expert


def headline(plan: Plan, store: Store, evaluation: Evaluation | None) -> Headline:
    """The summary of a run.

    Args:
        plan: of the run.
        store: of the run.
        evaluation: all that is known of its policies; None where none was evaluated.
    """
    signs = _held_out_signs(plan.recipe, store, evaluation)
    newest = unmeasured(plan, store) if evaluation else None
    scores = scores_of(evaluation)
    responses = evaluation.responses if evaluation else empty(RESPONSES)
    readings = probe.readings(plan, store)
    gaps = gap.measured(plan, responses)
    (student,), teachers = plan.recipe.students, plan.recipe.teachers
    return Headline(
        verdict(student, teachers, scores, responses),
        score_table(student, teachers, scores, plan.recipe.eval.against),
        gap.in_words(gaps[0]) if gaps else None,
        UNMEASURED.format(round=newest.round) if newest else None,
        warnings(plan.recipe, readings, signs),
        _advice(plan, readings),
        _flags(plan, store, readings, signs),
    )


def all_signs(
    plan: Plan, store: Store, readings: Sequence[Reading], evaluation: Evaluation | None
) -> list[str]:
    """All signs of failure, each with whose it is."""
    return _flags(plan, store, readings, _held_out_signs(plan.recipe, store, evaluation))


def scores_of(evaluation: Evaluation | None) -> Rows:
    """Rows of EVALUATION, with no more digits than anybody reads."""
    rows = evaluation.table.to_dicts() if evaluation else []
    return [{key: json_number(value) for key, value in row.items()} for row in rows]


def _held_out_signs(
    recipe: Recipe, store: Store, evaluation: Evaluation | None
) -> dict[str, Signs]:
    """Signs in all that is known of the held-out answers, by policy."""
    if evaluation is None:
        return {}
    if len(evaluation.paths) == 1:  # it keeps its own
        manifest = store.manifest(f"eval/{evaluation.paths[0].name}") or {}
        signs: dict[str, Signs] = manifest.get("signs", {})
        return signs
    return of_evaluation(evaluation.responses, recipe.teachers, evaluation.judgements)


def score_table(
    student: str, teachers: Sequence[str], scores: Rows, against: str | None = None
) -> ScoreTable | None:
    """Student, teachers and ceiling by round; None where the student was not measured.

    The ceiling is of no round: it stands beside the student's newest score. Of several baselines
    that of the recipe, `against`, is shown where it was measured, else the newest.
    """
    measure = measure_of(student, scores)
    if measure is None:
        return None
    mine = [s for s in of_agent(student, scores) if s["measure"] == measure]
    against = _baseline(mine, against)
    alike = [s for s in scores if (s["measure"], s["against"]) == (measure, against)]
    by_agent = {
        agent: {s["round"]: s["mean"] for s in of_agent(agent, alike)}
        for agent in [student, *teachers]
    }
    rounds = evenly(sorted({r for means in by_agent.values() for r in means}), ROUNDS)
    ceilings = [s["mean"] for s in alike if s["behavior"] == "ceiling"]
    newest = of_agent(student, alike)[-1]
    beside = max(r for r in rounds if r <= newest["round"])
    by_agent[CEILING] = dict(zip([beside], ceilings, strict=False))
    rows = [
        ScoreRow(name, [means.get(r) for r in rounds]) for name, means in by_agent.items() if means
    ]
    return ScoreTable(_meaning(student, newest), rounds, rows)


def _baseline(scores: Rows, wanted: str | None) -> str | None:
    """With whom the scores shown are compared."""
    measured = [score["against"] for score in scores]
    against: str | None = wanted if wanted in measured else measured[0]
    return against


def _meaning(student: str, newest: Mapping[str, Any]) -> str:
    """What a score is."""
    by = newest["by"]
    match newest["measure"]:
        case "gold" if by == RIGHT_ANSWERS:
            scale = "share of right answers"
        case "gold":
            scale = f"from 0 (bad) to 1 (good), by the judge that comes with the data ({by})"
        case "reward":
            scale = f"by the reward model {by}; the higher the better, without a fixed scale"
        case _:
            against = name_baseline(newest["against"], student)
            scale = f"share of comparisons won against {against}, by the {by}; 0.5 is level"
    alike = ", as if all answers were equally long" if newest["measure"] == "win_lc" else ""
    prompts = f"{newest['prompts']:,} held-out prompts, on which nobody was trained"
    return f"{scale}{alike}. Mean over {prompts}."


def examples(plan: Plan, store: Store, evaluation: Evaluation) -> list[Example]:
    """Some held-out prompts with the student's first and last answer, of several draws the first.

    Raises:
        StoreError: the prompts are damaged.
    """
    (student,) = plan.recipe.students
    mine = of_agent(student, scores_of(evaluation))
    measure = measure_of(student, mine)
    if measure in BY_PROMPT:
        scored = evaluation.responses.with_columns(score=pl.col(measure))
    else:
        key = ["prompt_id", "agent", "behavior", "round", "draw"]
        compared = [score for score in mine if score["measure"] == measure]
        against = _baseline(compared, plan.recipe.eval.against) if compared else None
        won = evaluation.judgements.filter(against=against)
        scored = evaluation.responses.join(won.select(*key, score="win"), on=key, how="left")
    return drawn(store.read(plan.prompts_name, "test.parquet"), scored, student)


def drawn(prompts: pl.DataFrame, scored: pl.DataFrame, student: str) -> list[Example]:
    """The first prompts in the order of their ids, which are hashes: a draw, and no choice.

    Args:
        prompts: PROMPTS.
        scored: RESPONSES with a column `score`.
        student: whose answers are shown.
    """
    own = scored.filter(agent=student, behavior="positive", draw=0).drop_nulls("round")
    rounds = sorted(own["round"].unique())
    first_and_last = list(dict.fromkeys(rounds[:1] + rounds[-1:]))

    def answers(prompt_id: str) -> list[Answer]:
        by_round = {
            row["round"]: row for row in own.filter(prompt_id=prompt_id).iter_rows(named=True)
        }
        answered = [by_round[r] for r in first_and_last if r in by_round]
        return [Answer(row["round"], row["response"], row["score"]) for row in answered]

    rows = prompts.sort("prompt_id").head(EXAMPLES).iter_rows(named=True)
    shown = [Example(row["prompt"], answers(row["prompt_id"])) for row in rows]
    return [example for example in shown if example.answers]


def warnings(
    recipe: Recipe, readings: Sequence[Reading], held_out: Mapping[str, Signs]
) -> list[str]:
    """On which signs a person has to act: those of the student's newest answers, and of drift."""
    (student,) = recipe.students
    mine = f"{student}-positive-"
    rounds = [int(who.removeprefix(mine)) for who in held_out if who.startswith(mine)]
    newest = held_out[f"{mine}{max(rounds)}"] if rounds else {}
    crossed = {name: sign["value"] for name, sign in newest.items() if sign["crossed"]}
    lines = [text.format(value=100 * crossed[n]) for n, text in ACTIONS.items() if n in crossed]
    if {"gold", "reward", "win"} & crossed.keys():
        lines.append(FELL.format(round=max(rounds)))
    best = probe.best_round(recipe, readings)
    if best and best.crossed is not None:
        lines.append(STRAYS.format(round=best.crossed))
    return lines


def _advice(plan: Plan, readings: Sequence[Reading]) -> str | None:
    if any(reading.policy.round for reading in readings):
        return None
    advice = advise(plan, readings)
    return IN_SHORT[advice.next] if advice else None


def _flags(
    plan: Plan, store: Store, readings: Sequence[Reading], held_out: Mapping[str, Signs]
) -> list[str]:
    """All signs of failure, each with whose it is; what is damaged has none."""
    lines = []
    for step in plan.steps:
        try:
            lines += [f"{step}: {line}" for line in flags(store.manifest(plan.name(step)) or {})]
        except StoreError:
            continue
    lines += flags({"kind": "eval", "signs": held_out})
    drift = probe.warning(plan.recipe, readings)
    return lines + ([drift] if drift else [])
