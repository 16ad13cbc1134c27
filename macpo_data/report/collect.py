"""The data of the report page: a run's steps, evaluations, and where rows were dropped.

`collect` gives values that JSON knows and nothing else; the page in report_page/ shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import polars as pl
import yaml

from macpo_data.errors import StoreError
from macpo_data.evaluation import gap, probe
from macpo_data.evaluation.advice import advise
from macpo_data.evaluation.draws import described
from macpo_data.evaluation.headline import headline, scores_of
from macpo_data.evaluation.probe import best_line
from macpo_data.evaluation.results import Evaluation, latest
from macpo_data.evaluation.verdict import Rows
from macpo_data.methods.registry import name_of
from macpo_data.plan import Plan, Step
from macpo_data.recipe.recipe import Recipe
from macpo_data.report import excerpt
from macpo_data.report.compare import differences
from macpo_data.report.excerpt import COLUMNS, Dataset, Texts
from macpo_data.schema import CANDIDATES, RESPONSES, empty
from macpo_data.store.pins import Lock
from macpo_data.store.store import Manifest, State, Store, states
from macpo_data.text import json_number
from macpo_data.versions import versions

POINTS = 200  # of one training curve
QUANTILES = {"low": 0.05, "lower": 0.25, "middle": 0.5, "upper": 0.75, "high": 0.95}


class Source(NamedTuple):
    """One recipe on the page."""

    label: str
    plan: Plan
    store: Store
    options: str = ""  # the options that name it on the command line


def collect(sources: Sequence[Source]) -> dict[str, Any]:
    """Everything that the page shows of some recipes.

    Returns:
        recipes: one dict each; texts: every text once; pairs: rows of numbers and names, as
        `pair_columns` says, which texts are numbers of.
    """
    texts = Texts()
    recipes: Rows = []
    shown: list[list[Dataset]] = []
    for source in sources:
        recipe, datasets = _recipe(source, texts)
        same = sum(source.label == before.label for before in sources[: len(recipes)])
        recipe["name"] += f" ({same + 1})" if same else ""
        recipes.append(recipe)
        shown.append(datasets)
    first = sources[0].plan.recipe.model_dump(mode="json")
    for source, recipe in zip(sources, recipes, strict=True):
        changed = differences(first, source.plan.recipe.model_dump(mode="json"))
        recipe["differs"] = [[path, str(a), str(b)] for path, (a, b) in changed.items()]
    pairs = list(excerpt.draw(shown, texts))
    return {
        "recipes": recipes,
        "pair_columns": COLUMNS,
        "pairs": pairs,
        "texts": list(texts.numbers),
        "versions": versions(),
    }


def _recipe(source: Source, texts: Texts) -> tuple[dict[str, Any], list[Dataset]]:
    """One recipe, and its datasets cut down to what the page may show of them."""
    plan, store = source.plan, source.store
    recipe, state_of = plan.recipe, states(plan, store)
    warnings: list[str] = []
    done = {s: m for s in plan.steps if (m := _manifest(store, plan.name(s), warnings))}
    spread: Rows = []
    datasets: list[Dataset] = []
    losses = _unusable(_manifest(store, plan.prompts_name, warnings))
    # What the rounds are made of; the ceiling is no learner of a round.
    gens = [s for s in done if s.kind == "gen" and not s.is_ceiling]
    for step in gens:
        try:
            pairs = store.read(plan.name(step), "pairs.parquet")
            candidates = empty(CANDIDATES)  # a pulled round may have none
            if "candidates.parquet" in done[step]["files"]:
                candidates = store.read(plan.name(step), "candidates.parquet")
        except StoreError as error:
            warnings.append(str(error))
            continue
        spread += [_of(step) | row for row in _spread(pairs, candidates)]
        losses += [_of(step) | row for row in _losses(done[step]["summary"])]
        datasets.append(excerpt.cut(Dataset(step, pairs, candidates)))
    evaluation = _evaluation(plan, store, warnings)
    responses = evaluation.responses if evaluation else empty(RESPONSES)
    top = headline(plan, store, evaluation)
    student = recipe.students[0]
    winners = _winners([(s, done[s]) for s in gens if s.learner == student])
    return {
        "name": source.label,
        "run": recipe.run,
        "method": name_of(recipe),
        "student": student,
        "agents": [student, *(a for a in recipe.agents if a != student)],
        "headline": asdict(top),
        "about": _about(recipe, _manifest(store, plan.prompts_name, []), evaluation),
        **_probed(source),
        "gaps": [gap.facts(each) for each in gap.measured(plan, responses)],
        "sampling": described(plan.sampling("test")),
        "steps": [_step(plan, step, state_of, done.get(step)) for step in plan.steps],
        "scores": scores_of(evaluation),
        "spread": spread,
        "winners": winners,
        "losses": losses,
        "curves": [c for s, m in done.items() if s.makes and (c := _curve(s, m))],
        "warnings": warnings + top.signs,
        "answers": excerpt.answers(plan, store, responses, texts),
        "provenance": _provenance(source, list(done.values())),
    }, datasets


def _about(
    recipe: Recipe, prompts: Manifest | None, evaluation: Evaluation | None
) -> dict[str, Any]:
    """Who writes, on how many prompts of each part, and who judges."""
    models = [
        {
            "name": name,
            "role": agent.role,
            "base": agent.base or (agent.endpoint.model if agent.endpoint else ""),
        }
        for name, agent in recipe.agents.items()
    ]
    judges = list(evaluation.table["by"].unique(maintain_order=True)) if evaluation else []
    return {"models": models, "prompts": (prompts or {}).get("rows", {}), "judges": judges}


def _probed(source: Source) -> dict[str, Any]:
    """What the probe says: of each policy, of the round to keep, and of what to run next."""
    recipe = source.plan.recipe
    readings = probe.readings(source.plan, source.store)
    best, advice = probe.best_round(recipe, readings), advise(source.plan, readings)
    rows = [
        {"agent": r.policy.agent, "round": r.policy.round, "perplexity": r.perplexity}
        | {"ranked_right": r.accuracy, "score": r.score}
        for r in readings
    ]
    numbers = advice and {
        **{agent: {"mean": accuracy} for agent, accuracy in advice.accuracy.items()},
        "the teachers together": {"mean": advice.together},
        "their lead over the student": advice.lead._asdict(),
    }
    return {
        "probe": rows,
        "best": best and {"round": best.round, "text": best_line(best, source.options)},
        "advice": advice and {"title": advice.next.value, "text": advice.text, "numbers": numbers},
    }


def _manifest(store: Store, name: str, warnings: list[str]) -> Manifest | None:
    try:
        return store.manifest(name)
    except StoreError as error:
        warnings.append(str(error))
        return None


def _of(step: Step) -> dict[str, Any]:
    return {"round": step.round, "learner": step.learner}


def _step(
    plan: Plan, step: Step, state_of: dict[Step, State], manifest: Manifest | None
) -> dict[str, Any]:
    waits = [str(parent) for parent in plan.parents(step) if state_of[parent] != "done"]
    facts = manifest or {}
    return {
        **_of(step),
        "step": step.what,
        "state": state_of[step],
        "result": plan.name(step),
        "waits": [] if manifest else waits,
        "rows": facts.get("rows", facts.get("summary", {}).get("pairs")),
        "seconds": facts.get("seconds"),
        "made": facts.get("created"),
        "content": str(facts.get("content", ""))[:12],
    }


def _spread(pairs: pl.DataFrame, candidates: pl.DataFrame) -> Rows:
    """Quantiles of perplexity, length and margin of what was up for selection, and of the pairs.

    The margin of a response is by how much likelier than the rejected one the learner finds it
    before training, in nats per token.
    """
    beside = pairs.select("prompt_id", "rejected_perplexity").unique("prompt_id", keep="first")
    up = candidates.join(beside, on="prompt_id", how="left")
    frames = {
        "candidates": up,
        "chosen": pairs.select(
            "rejected_perplexity", response="chosen", perplexity="chosen_perplexity"
        ),
        "rejected": pairs.select(
            response="rejected", perplexity="rejected_perplexity", rejected_perplexity=None
        ),
    }
    values = {
        "perplexity": pl.col("perplexity"),
        "length": pl.col("response").str.len_chars().cast(pl.Float64),
        "margin": pl.col("rejected_perplexity").cast(pl.Float64).log() - pl.col("perplexity").log(),
    }
    rows = []
    for kind, frame in frames.items():
        for measure, value in values.items():
            series = frame.select(value).to_series().drop_nulls().drop_nans()
            if len(series):
                quantiles = {
                    n: json_number(series.quantile(q, "linear")) for n, q in QUANTILES.items()
                }
                rows.append({"kind": kind, "measure": measure, "rows": len(series)} | quantiles)
    return rows


def _losses(summary: dict[str, Any]) -> Rows:
    """Rows that filters left out, or only noted, with the share of those that were up."""
    up = summary["candidates"] or summary["pairs"] + sum(summary["dropped_by_reason"].values())
    dropped = summary["dropped_by_reason"]
    noted = {r: n for r, n in summary["caught_by_reason"].items() if r not in dropped}
    return [
        {"what": what, "reason": reason, "rows": n, "share": json_number(n / max(up, 1))}
        for what, counts in (("dropped", dropped), ("noted", noted))
        for reason, n in counts.items()
    ]


def _unusable(prompts: Manifest | None) -> Rows:
    facts = prompts or {}
    counts = facts.get("unusable", {})
    total = sum(counts.values()) + sum(facts.get("rows", {}).values())
    return [
        {"round": None, "learner": "source", "what": "unusable", "reason": reason, "rows": n}
        | {"share": json_number(n / total)}
        for reason, n in counts.items()
    ]


def _winners(manifests: list[tuple[Step, Manifest]]) -> Rows:
    """Whose answers the student was given, by round."""
    return [
        {"round": step.round, "agent": agent, "pairs": n, "share": n / manifest["summary"]["pairs"]}
        for step, manifest in manifests
        for agent, n in manifest["summary"]["chosen_by_agent"].items()
    ]


def _curve(step: Step, manifest: Manifest) -> dict[str, Any] | None:
    """A training's history, thinned to POINTS steps."""
    history: Rows = manifest.get("history", [])
    if not history:
        return None
    every = -(-len(history) // POINTS)
    kept = history[::every]
    columns = {key: [json_number(row.get(key)) for row in kept] for key in kept[-1]}
    return {**_of(step), "behavior": step.behavior, "columns": columns}


def _evaluation(plan: Plan, store: Store, warnings: list[str]) -> Evaluation | None:
    """All that is known of the policies."""
    try:
        return latest(plan, store)
    except StoreError as error:
        warnings.append(str(error))
        return None


def _provenance(source: Source, manifests: list[Manifest]) -> dict[str, Any]:
    """What it takes to make the same again."""
    recipe, store = source.plan.recipe, source.store
    used = [[manifest["versions"], manifest["python"]] for manifest in manifests]
    return {
        "commands": [f"macpo run --until {source.plan.last_round}{source.options}"],
        "seed": recipe.seed,
        "pins": Lock(store.root).pins(),
        "versions": [each for at, each in enumerate(used) if each not in used[:at]],
        "recipe": yaml.safe_dump(
            recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True
        ),
    }
