"""All that some steps need, each thing once, and the looking at it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from macpo_data.plan import Plan, Step
from macpo_data.planning.outlook import sections
from macpo_data.recipe.recipe import Recipe
from macpo_data.store.store import Store
from macpo_run.preflight import data, models, room, running
from macpo_run.preflight.finding import Checks, Health
from macpo_run.preflight.voices import Voices, voices_of


def needs(plan: Plan, store: Store, steps: Sequence[Step], evaluates: bool = False) -> Checks:
    """What some steps need, each thing once by its name.

    Args:
        plan: of the run.
        store: of the run.
        steps: that are still to be made.
        evaluates: whether the command then measures the policies.
    """
    if not steps:
        return {}
    recipe = plan.recipe
    checks: Checks = {f"output {store.root}": partial(data.writable, store.root)}
    gens = [step for step in steps if step.kind == "gen"]
    drawn = store.is_done(plan.prompts_name)
    if not drawn and (gens or any(step.objective == "reward" for step in steps)):
        checks |= data.sources(recipe, store.root)
    checks |= data.policies(plan, store, steps)
    if recipe.eval.by == "answer":
        checks["math-verify"] = running.math_verify
    if recipe.engine.name == "fake":
        return checks
    voices = voices_of(plan, steps, evaluates)
    checks |= _trainings(recipe, voices)
    if voices.written or voices.scored:
        scores = bool(voices.scored)
        key = f"engine {recipe.engine.model_dump_json()} {scores and recipe.score.engine}"
        checks[key] = partial(running.engine, recipe, scores)
    pins = data.pinned(store.root)
    learners = {name: recipe.agents[name] for name in voices.trained if name in recipe.agents}
    if any(step.objective == "reward" for step in voices.trained.values()):
        learners["reward"] = plan.reward_agent
    loaded = {**voices.written, **voices.scored, **learners}
    for name, agent in loaded.items():
        place = "hub base" if models.is_far(agent.base) else "base"
        key = f"{place} {agent.base}@{agent.revision} {agent.chat_template}"
        checks[key] = partial(models.base, agent, pins, f"agents.{name}.base")
        checks[f"template {agent.chat_template}"] = partial(models.template, agent)
    for agent in voices.rewards.values():
        key = f"hub reward model {agent.base}@{agent.revision} {agent.chat_template}"
        checks[key] = partial(
            models.base, agent, pins, "eval.reward or judge.reward", classifies=True
        )
    for endpoint in voices.servers.values():
        checks[f"server {endpoint.base_url} {endpoint.api_key_env}"] = partial(
            running.server, endpoint
        )
    everything = [*loaded.values(), *voices.rewards.values()]
    checks[f"room {plan.recipe.train} {sorted(loaded)}"] = partial(room.memory_for, plan, voices)
    checks[f"disk {[a.base for a in everything]}"] = partial(
        room.disk_for, plan, store.root, list(steps), everything
    )
    return checks


def look(checks: Checks) -> list[Health]:
    """What all checks find, in their order; servers are asked side by side."""
    with ThreadPoolExecutor(8) as pool:
        return [line for lines in pool.map(lambda check: list(check()), checks.values())
                for line in lines]  # fmt: skip


def _trainings(recipe: Recipe, voices: Voices) -> Checks:
    if not voices.trained:
        return {}
    batches = {sections(recipe, step).batch_size for step in voices.trained.values()}
    key = f"training {recipe.train.model_dump_json()} {sorted(batches)}"
    return {key: partial(running.training, recipe.train, batches)}
