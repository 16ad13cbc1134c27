"""Runs one train step: fits a policy or a reward model on its dataset, and stores it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from macpo_data.errors import ModelError
from macpo_data.generation import reward_model as reward
from macpo_data.generation.run_context import RunContext
from macpo_data.models import base as models
from macpo_data.models.weights import weights_sha256
from macpo_data.outside import parse_json
from macpo_data.plan import FORMAT, Policy, Step
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.recipe import Recipe, TrainSettings
from macpo_data.recipe.section import digest
from macpo_data.recipe.training import DPO, SFT, RewardTraining
from macpo_data.store.store import inputs, sha256, write_parquet
from macpo_data.versions import versions
from macpo_run.reference import score_pairs
from macpo_run.session import Session
from macpo_run.step_facts import signs_of, step_facts
from macpo_run.training import make_bases
from macpo_train.ranks import is_first

if TYPE_CHECKING:
    from macpo_train.job import Job


def job_of(
    settings: Recipe | TrainSettings,
    section: SFT | DPO | RewardTraining,
    agent: Agent,
    base: models.Base,
    dataset: Path,
    out: Path,
    **rest: Any,
) -> Job:
    """A training, of a run or of one dataset.

    Args:
        settings: whose adapter's shape, training and engine count.
        section: of them, which says what is minimised.
        agent: whose template renders the messages.
        base: its base, at a revision.
        dataset: parquet.
        out: where the adapter, checkpoint or classifier goes.
        rest: other fields of `Job`.
    """
    from macpo_train.job import Job

    return Job(
        dataset=dataset,
        base=base,
        chat_template=agent.chat_template,
        out=out,
        settings=section,
        lora=settings.lora,
        train=settings.train,
        fake=settings.engine.name == "fake",
        **rest,
    )


def train(run: Session, step: Step) -> None:
    """Train one policy on its dataset, from where the plan says; or the run's own reward model."""
    if step.objective == "reward":
        return _fit_reward(run, run.context())
    name, recipe, plan = run.plan.name(step), run.recipe, run.plan
    agent = recipe.agents[step.learner]
    made_from = inputs(plan, run.store, step)
    dataset = plan.name(plan.dataset(step))
    run.store.verify(dataset, "pairs.parquet")
    start, *others = step.policies
    maker = plan.maker(start)
    for policy in step.policies:
        if origin := plan.maker(policy):
            run.store.verify(plan.name(origin))
    sections = {"sft_chosen": recipe.sft, "sft_rejected": recipe.negative}
    job = job_of(
        recipe,
        sections.get(str(step.objective), recipe.dpo),
        agent,
        run.base(agent),
        run.store.path(dataset) / "pairs.parquet",
        run.path(step),
        column="rejected" if step.objective == "sft_rejected" else "chosen",
        start=None if maker is None else run.path(maker),
        finetuning=recipe.finetuning(step.learner),
        confidence=recipe.confidence if "confidence" in step.reads else None,
        lr_scale=agent.lr_scale,
        # Twins on one base with the same data would otherwise have the same weights.
        seed=int(digest([recipe.seed, step.learner]), 16),
        scored_under=_scored_under(run, dataset, start),
        cache=run.store.path("reference"),
        logs=run.store.path("logs"),
        start_signs=signs_of(plan, run.store, maker),
    )
    if others:
        job = _with_reference(run, job, others[0])
    elif step.objective == "dpo" and recipe.dpo.reference == "base" and job.finetuning == "full":
        job = _with_reference(run, job, Policy(step.learner))  # no adapter to switch off
    facts = run.fit(job, f"training {step.makes}")
    if not is_first():
        while not run.store.is_done(name):
            time.sleep(0.1)
        return
    manifest = step_facts(plan, step, made_from) | facts
    manifest |= {
        "objective": step.objective,
        "base": job.base.id,
        "base_revision": job.base.revision,
        "start": None if maker is None else plan.name(maker),
        "adapter_sha256": weights_sha256(job.out),
    }
    if step.objective == "dpo":
        held_to = plan.maker(step.policies[-1])
        if recipe.dpo.reference == "base":
            held_to = None
        manifest["reference"] = plan.name(held_to) if held_to else job.base.id
    run.store.finish(name, manifest)


def _scored_under(run: Session, dataset: str, start: Policy) -> dict[str, Any] | None:
    """What the scores of a dataset depend on, where they are those of one policy, `start`."""
    manifest = run.store.manifest(dataset) or {}
    scored: dict[str, Any] = manifest.get("scored_under", {})
    return scored[str(start)] if list(scored) == [str(start)] else None


def _with_reference(run: Session, job: Job, reference: Policy) -> Job:
    """A training that is held to another policy than it starts from, with its scores."""
    maker = run.plan.maker(reference)
    weights = maker and run.store.content(run.plan.name(maker))
    made_from = [sha256(job.dataset), weights or run.plan.policy_fingerprint(reference)]
    name = digest([made_from, run.recipe.read("engine")])
    scores = run.store.path(f"reference/pairs-{name}.parquet")
    if is_first() and not scores.is_file():
        pairs = score_pairs(run.context(), reference, pl.read_parquet(job.dataset))
        write_parquet(scores, pairs)
    while not scores.is_file():  # the first of several processes writes it
        time.sleep(0.1)
    scored_under = parse_json(pl.read_parquet(scores, columns=["scored_under"]).item(0, 0))
    held_to = None if maker is None else run.path(maker)
    return replace(job, reference=held_to, scores=scores, scored_under=scored_under)


def train_reward(run: Session, redo: bool = False) -> Path:
    """Train the run's own reward model unless it is there, and return its folder.

    Raises:
        MacpoError: there are no human pairs, or anything else that a person can mend.
    """
    name = run.plan.reward_name
    with run.store.lock(name):
        if redo:
            run.store.aside(name)
        if not run.store.is_done(name):
            _fit_reward(run, run.context(redo))
    return run.store.path(name)


def _fit_reward(run: Session, context: RunContext) -> None:
    """Train a reward model on D1's human pairs.

    Its manifest holds the accuracy on the test prompts' human pairs, by the model as saved.
    """
    recipe, agent, name = run.recipe, run.plan.reward_agent, run.plan.reward_name
    if agent.endpoint is not None:
        raise ModelError("the student has no weights here; name others with reward.base")
    pairs = run.store.path(name) / "pairs.parquet"
    write_parquet(pairs, context.human_pairs("d1").pairs)
    if recipe.engine.name != "fake":
        make_bases([agent.base], run.progress)
    model = run.store.path(name) / "model"
    logs = run.store.path("logs")
    job = job_of(
        recipe, recipe.reward, agent, run.base(agent), pairs, model,
        column="chosen", start=None, finetuning=recipe.reward_finetuning, seed=recipe.seed,
        logs=logs,
    )  # fmt: skip
    facts = run.fit(job, "training the reward model")
    facts |= _held_out(run, context.prompts("test"))
    facts |= {"kind": "reward", "format": FORMAT, "base": job.base.id}
    facts |= {"base_revision": job.base.revision, "recipe": recipe.model_dump(mode="json")}
    made_from = {run.plan.prompts_name: run.store.content(run.plan.prompts_name)}
    run.store.finish(name, facts | {"inputs": made_from, **versions()})


def _held_out(run: Session, prompts: pl.DataFrame) -> dict[str, Any]:
    """How often the run's reward model, as saved, scores the human's chosen answer higher."""
    pairs = prompts.drop_nulls(["chosen", "rejected"])
    sides = pl.concat(
        pairs.select("prompt_id", "prompt", response=side, finish_reason=pl.lit("stop"))
        for side in ("chosen", "rejected")
    )
    scorer = reward.trained_scorer(run.plan, run.store, run.lock)
    work = (run.recipe.engine, scorer, sides)
    with run.progress("scoring held-out pairs") as report:
        if run.recipe.engine.name == "fake":
            rewards = reward.rewards(report, *work)
        else:
            worker = run.writer(f"the reward model {scorer.base.id}")
            rewards = worker.call(
                "macpo_data.generation.reward_model:rewards", *work, report=report
            )
    return reward.accuracy(rewards[: len(pairs)], rewards[len(pairs) :])
