"""Who speaks, scores and learns in some steps, and from where."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from macpo_data.generation import judge as judges
from macpo_data.generation import mixture as mixtures
from macpo_data.plan import Plan, Policy, Step
from macpo_data.recipe.agents import Agent, Endpoint
from macpo_data.recipe.evaluation import TRAINED
from macpo_data.store.store import State


@dataclass(frozen=True)
class Voices:
    """Whose weights are loaded here for some steps, and who speaks through a server."""

    trained: dict[str, Step]  # learner: its first train step
    written: dict[str, Agent]  # by an engine here
    scored: dict[str, Agent]  # with a forward pass, or vLLM
    servers: dict[str, Endpoint]
    rewards: dict[str, Agent]  # reward models


def coming(
    plan: Plan, states: Mapping[Step, State], steps: Collection[Step], redo: bool = False
) -> list[Step]:
    """Those of some steps that a command makes: not done, and waiting for none but each other."""
    able: list[Step] = []
    for step in plan.steps:
        if step not in steps or (states[step] == "done" and not redo):
            continue
        if states[step] == "stale" and not redo:
            continue
        if all(states[p] == "done" or p in able for p in plan.parents(step)):
            able.append(step)
    return able


def voices_of(plan: Plan, steps: Sequence[Step], evaluates: bool) -> Voices:
    """Who speaks, scores and learns in some steps."""
    recipe = plan.recipe
    voices = Voices({}, {}, {}, {}, {})
    speakers: list[Policy] = []
    for step in steps:
        if step.kind == "train":
            who = "reward" if step.objective == "reward" else step.learner
            voices.trained.setdefault(who, step)
            continue
        speakers += step.policies
        if "judge" in step.reads:
            speakers += judges.policies(recipe.judge)
        if "mixture" in step.reads:
            speakers += mixtures.policies(recipe.mixture)
        if step.round > 0 and recipe.agents[step.learner].base:
            voices.scored[step.learner] = recipe.agents[step.learner]
        judge = recipe.judge if "judge" in step.reads else None
        if judge and judge.reward and judge.reward.model != TRAINED:
            voices.rewards[judge.reward.model] = judge.reward.agent
    if evaluates:
        speakers += [p for s in plan.steps if (p := s.makes) and p.behavior == "positive"]
        judge = recipe.eval.judge or (recipe.judge if recipe.eval.against else None)
        speakers += judges.policies(judge)
        for model in (recipe.eval.reward, judge and judge.reward):
            if model and model.model != TRAINED:
                voices.rewards[model.model] = model.agent
    for policy in speakers:
        agent = recipe.agents[policy.agent]
        endpoint = agent.endpoint
        if endpoint and (policy.round is None or endpoint.adapters == "load"):
            voices.servers[policy.agent] = endpoint
        else:
            voices.written[policy.agent] = agent
    return voices
