"""A run's steps, made.

`gen` and `train` make whatever of theirs is ready in a round and say what waits for what.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from macpo_data.errors import DataError, Interrupted, MacpoError, ModelError
from macpo_data.evaluation import probe
from macpo_data.evaluation.evaluate import evaluate
from macpo_data.generation.context import Context, Progress, RoundData
from macpo_data.methods import ceiling, make_plan, method
from macpo_data.models import base as models
from macpo_data.models.worker import Workers
from macpo_data.plan import FORMAT, Plan, Policy, Step
from macpo_data.recipe import Recipe, digest
from macpo_data.signs.dataset import of_dataset
from macpo_data.signs.rules import Signs
from macpo_data.store.pins import Lock
from macpo_data.store.store import State, Store, inputs, sha256, states, write_parquet
from macpo_data.versions import versions
from macpo_run.notes import NOTES, noted
from macpo_run.reference import score_pairs
from macpo_run.training import fit, pretrain

if TYPE_CHECKING:
    from macpo_data.evaluation.results import Evaluation
    from macpo_train.job import Job

Kind = Literal["gen", "train"]
STALE = "it is damaged, or made from what changed since: --redo makes it anew"


@dataclass
class Outcome:
    """What a command did."""

    wrote: list[tuple[Step, Path]] = field(default_factory=list)
    kept: list[tuple[Step, Path]] = field(default_factory=list)  # was done already
    waiting: dict[Step, list[str]] = field(default_factory=dict)  # what each waits for


class Run:
    """A recipe with its plan and store, and the processes that work for it."""

    def __init__(
        self, recipe: Recipe, runs: Path, progress: Progress, say: Callable[[str], None]
    ) -> None:
        """Nothing is read or started yet."""
        self.recipe = recipe
        self.label = recipe.run  # its name on a page of several
        self.said = ""  # the options that made this run, for the next command
        self.plan: Plan = make_plan(recipe)
        self.store = Store(runs / recipe.run, say)
        self._shown = progress
        self.progress = noted(progress, self.store.root / NOTES)
        self.say = say
        self._keep = recipe.engine.keep_loaded > 1
        self._writers = Workers(recipe.engine.keep_loaded)
        self._trainers = Workers(1)

    def __enter__(self) -> Run:
        """Close the processes at the end, whatever happens."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give all memory back; after Ctrl-C, at once."""
        self.close(kill=kind in (Interrupted, KeyboardInterrupt))

    def close(self, kill: bool = False) -> None:
        """End the processes; the next step starts new ones."""
        self._writers.close(kill)
        self._trainers.close(kill)

    def beside(self, recipe: Recipe) -> Run:
        """The run of a variant in the same folder, by the same processes where they fit it."""
        other = Run(recipe, self.store.root.parent, self._shown, self.say)
        if recipe.engine == self.recipe.engine:
            other._writers, other._trainers = self._writers, self._trainers
        return other

    @cached_property
    def lock(self) -> Lock:
        """The pins of this run."""
        return Lock(self.store.root)

    def context(self, redo: bool = False) -> Context:
        """What builds datasets; `redo` makes damaged parts anew."""
        return Context(self.plan, self.store, self._writers, self.progress, redo)

    def states(self) -> dict[Step, State]:
        """The state of every step."""
        return states(self.plan, self.store)

    def path(self, step: Step) -> Path:
        """Where a step's result is or will be."""
        return self.store.path(self.plan.name(step))

    def select(self, kind: Kind | None, round_: int, learner: str | None = None) -> list[Step]:
        """The steps of a round, of one kind and learner where they are named.

        Raises:
            MacpoError: the recipe has no such round or learner.
        """
        last = self.plan.last_round
        if not 0 <= round_ <= last:
            more = f"for more say --set rounds={round_}"
            if last < self.recipe.rounds:
                more = f"method {self.recipe.method} has no more"
            raise MacpoError(
                f"no round {round_}: this recipe has rounds 0..{last}"
                + (f"; {more}" if round_ > 0 else "")
            )
        if learner is not None and learner not in self.recipe.agents:
            raise MacpoError(f"no learner {learner!r}: choose {', '.join(self.recipe.agents)}")
        learners = dict.fromkeys(step.learner for step in self.plan.steps)
        if learner is not None and learner not in learners:
            raise MacpoError(
                f"{learner} learns nothing in method {self.recipe.method}: choose "
                f"{', '.join(learners)}"
            )
        return [
            step
            for step in self.plan.steps
            if step.round == round_
            and kind in (None, step.kind)
            and learner in (None, step.learner)
        ]

    def waits_for(self, step: Step, found: dict[Step, State]) -> list[str]:
        """Which parents of a step are missing or stale."""
        return [
            str(parent) + (" (stale)" if found[parent] == "stale" else "")
            for parent in self.plan.parents(step)
            if found[parent] != "done"
        ]

    def make(
        self,
        kind: Kind,
        round_: int,
        learner: str | None = None,
        redo: bool = False,
        only: Collection[Step] | None = None,
    ) -> Outcome:
        """Make whatever is ready of a kind in a round, or of some of its steps; each result once.

        Raises:
            MacpoError: anything that a person can mend; what is finished stays.
        """
        outcome = Outcome()
        todo = [s for s in self.select(kind, round_, learner) if only is None or s in only]
        while todo:
            found = self.states()
            able = [s for s in todo if found[s] in ("done", "ready") or self._may(s, found, redo)]
            if not able:
                break
            # Steps on the base that is loaded already go first.
            step = min(able, key=lambda s: (s.turn, not self._loaded(s)))
            todo.remove(step)
            again = self._may(step, found, redo)
            if found[step] == "done" and not again:
                outcome.kept.append((step, self.path(step)))
                continue
            if _several() and (again or kind == "gen"):
                raise MacpoError(
                    f"{step}: several processes only train, and without --redo; run this without "
                    "accelerate launch (train.launcher starts processes where they are wanted)"
                )
            self._prepare_bases(step)
            with self.store.lock(self.plan.name(step)) if _first() else nullcontext():
                if again and (old := self.store.aside(self.plan.name(step))):
                    self.say(f"{step}: the old result is in {old}")
                made = not self.store.is_done(self.plan.name(step))
                if made:
                    self._gen(step, redo) if kind == "gen" else self._train(step)
            (outcome.wrote if made else outcome.kept).append((step, self.path(step)))
        found = self.states()
        for step in todo:
            outcome.waiting[step] = self.waits_for(step, found) or [STALE]
        # What was pulled needs no source, and several processes only train.
        if kind == "train" and self.store.is_done(self.plan.prompts_name) and not _several():
            # The first round is what all others are held against.
            read = [s for r in dict.fromkeys((0, round_)) for s in self.select("train", r)]
            trained = [s.makes for s in read if found[s] == "done"]
            voices = [p for p in trained if p and (p.behavior == "positive" or p.round == 0)]
            # Nothing is made from it, so that what became stale is simply made again.
            context = self.context(redo=True)
            probe.measure(context, [p for p in voices if p.behavior != "ceiling"])
        if not self._keep:
            self.close()
        return outcome

    def _may(self, step: Step, found: dict[Step, State], redo: bool) -> bool:
        """Whether --redo was said and everything that the step is made from is fresh."""
        return redo and not self.waits_for(step, found)

    def finish_round(self, round_: int, only: Collection[Step] | None = None) -> Outcome:
        """All of a round, or some: gen and train in turns until nothing more becomes ready."""
        whole = Outcome()
        steps = [s for s in self.select(None, round_) if only is None or s in only]
        ready = True
        while ready:
            for kind in ("gen", "train"):
                outcome = self.make(kind, round_, only=steps)
                whole.wrote += outcome.wrote
                new = [kept for kept in outcome.kept if kept not in whole.wrote + whole.kept]
                whole.kept += new
            # Another process may have made what this one waited for.
            found = self.states()
            ready = any(found[step] == "ready" for step in steps)
        for step in steps:
            if found[step] != "done":
                whole.waiting[step] = self.waits_for(step, found) or [STALE]
        return whole

    def ended(self, round_: int) -> str | None:
        """Why a run ends after a round, as `stop` says; None where it goes on."""
        if self.recipe.stop == "probe":
            return self._spoilt(round_)
        return self._converged(round_) if self.recipe.stop == "converged" else None

    def _spoilt(self, round_: int) -> str | None:
        """Whether the student finds the probe's chosen answers too odd after a round."""
        (student,), known = self.recipe.students, probe.readings(self.plan, self.store)
        top = probe.line(self.recipe, known)
        now = [r for r in probe.of_agent(known, student) if r.policy.round == round_]
        if top is None or not now or now[0].perplexity <= top:
            return None
        return (
            f"stopped: after round {round_} the student's perplexity of the probe is "
            f"{now[0].perplexity:.2f}, above {top:.2f} (stop_above {self.recipe.stop_above})"
        )

    def _converged(self, round_: int) -> str | None:
        """Whether the student's perplexity of what it learns hardly fell in a round."""
        if round_ < 2:
            return None
        (student,) = self.recipe.students
        found = []
        for each in (round_ - 1, round_):
            (step,) = self.select("gen", each, student)
            manifest = self.store.manifest(self.plan.name(step)) or {}
            found.append(manifest.get("summary", {}).get("chosen_perplexity"))
        before, now = found
        if not before or not now or (before - now) / before >= self.recipe.stop_below:
            return None
        return (
            f"converged: the student's perplexity of what it learns was {before:.2f} in round "
            f"{round_ - 1} and is {now:.2f} in round {round_} (stop_below {self.recipe.stop_below})"
        )

    def ended_after(self) -> int | None:
        """The round after which `run` ends before the last one; None where it does not."""
        return next((t for t in range(self.plan.last_round + 1) if self.ended(t)), None)

    def _loaded(self, step: Step) -> bool:
        return self._writers.has(self.recipe.agents[step.learner].base)

    def _prepare_bases(self, step: Step) -> None:
        """Pretrain the embedded world's bases where they are missing: all of the recipe at once."""
        if self.recipe.engine.name == "fake" or (step.kind == "gen" and not step.policies):
            return
        pretrain([agent.base for agent in self.recipe.agents.values()], self.progress)

    def _gen(self, step: Step, redo: bool) -> None:
        """Write the dataset of one gen step: build it as the method says, write it, seal it."""
        name, context = self.plan.name(step), self.context(redo)
        context.prompts("d1")
        if step.round == 0 and self.recipe.eval.ceiling:
            ceiling.require(context)
        made_from = inputs(self.plan, self.store, step)
        data = method(self.recipe, step).build(step, context)
        if data.pairs.is_empty():
            raise DataError(
                f"{step}: no pair is left, dropped by reason: "
                f"{summary(data)['dropped_by_reason']}; loosen the filters under `select`, or set "
                "select.on_filter=count"
            )
        folder = self.store.clear(name)
        write_parquet(folder / "pairs.parquet", data.pairs)
        write_parquet(folder / "candidates.parquet", data.candidates)
        write_parquet(folder / "dropped.parquet", data.dropped)
        if data.turns is not None:
            write_parquet(folder / "turns.parquet", data.turns)
        facts = self._facts(step, made_from | context.used)
        if data.judged is not None:
            write_parquet(folder / "judgements.parquet", data.judged.judgements)
            facts["judged"] = data.judged.report
        # The pairs' scores are the learner's; who ranked candidates besides has none in them.
        learner = str(Policy(step.learner, "positive", step.round - 1))
        scored_under = {k: v for k, v in context.scored_under.items() if k == learner}
        facts |= {"summary": summary(data), "scored_under": scored_under}
        facts["signs"] = of_dataset(
            data.pairs, data.candidates, self._signs(step, step.round - 1), self._signs(step, 1)
        )
        facts["seconds"] = context.seconds
        self.store.finish(name, facts)

    def _signs(self, step: Step, round_: int) -> Signs:
        """Those of the same learner's dataset in an earlier round that contrasts, if it has one."""
        return self._signs_of(self.plan.earlier(step, round_) if round_ > 0 else None)

    def _signs_of(self, step: Step | None) -> Signs:
        """Those that a finished step's manifest holds."""
        manifest = step and self.store.manifest(self.plan.name(step))
        kept: Signs = (manifest or {}).get("signs", {})
        return kept

    def _train(self, step: Step) -> None:
        """Train one policy on its dataset, from where the plan says."""
        from macpo_train.job import Job

        name = self.plan.name(step)
        recipe, agent = self.recipe, self.recipe.agents[step.learner]
        made_from = inputs(self.plan, self.store, step)
        dataset = self.plan.name(self.plan.dataset(step))
        self.store.verify(dataset, "pairs.parquet")
        start, *others = step.policies
        maker = self.plan.maker(start)
        for policy in step.policies:
            if origin := self.plan.maker(policy):
                self.store.verify(self.plan.name(origin))
        fake = recipe.engine.name == "fake"
        settings = {"sft_chosen": recipe.sft, "sft_rejected": recipe.negative}
        job = Job(
            dataset=self.store.path(dataset) / "pairs.parquet",
            column="rejected" if step.objective == "sft_rejected" else "chosen",
            base=models.Base(agent.base, None) if fake else self.lock.base(agent),
            chat_template=agent.chat_template,
            start=None if maker is None else self.path(maker),
            out=self.path(step),
            settings=settings.get(str(step.objective), recipe.dpo),
            lora=recipe.lora,
            train=recipe.train,
            confidence=recipe.confidence if "confidence" in step.reads else None,
            lr_scale=agent.lr_scale,
            # Twins on one base with the same data would otherwise have the same weights.
            seed=int(digest([recipe.seed, step.learner]), 16),
            fake=fake,
            scored_under=self._scored_under(dataset, start),
            cache=self.store.path("reference"),
            logs=self.store.path("logs"),
            start_signs=self._signs_of(maker),
        )
        if others:
            job = self._with_reference(job, others[0])
        facts = self._fit(job, f"training {step.makes}")
        if not _first():
            while not self.store.is_done(name):
                time.sleep(0.1)
            return
        manifest = self._facts(step, made_from) | facts
        manifest |= {
            "objective": step.objective,
            "base": job.base.id,
            "base_revision": job.base.revision,
            "start": None if maker is None else self.plan.name(maker),
            "adapter_sha256": models.adapter_sha256(job.out),
        }
        if step.objective == "dpo":
            held_to = self.plan.maker(step.policies[-1])
            if recipe.dpo.reference == "base":
                held_to = None
            manifest["reference"] = self.plan.name(held_to) if held_to else job.base.id
        self.store.finish(name, manifest)

    def _with_reference(self, job: Job, reference: Policy) -> Job:
        """A training that is held to another policy than it starts from, with its scores."""
        maker = self.plan.maker(reference)
        assert maker is not None
        made_from = [sha256(job.dataset), self.store.content(self.plan.name(maker))]
        name = digest([made_from, self.recipe.read("engine")])
        scores = self.store.path(f"reference/pairs-{name}.parquet")
        if _first() and not scores.is_file():
            pairs = score_pairs(self.context(), reference, pl.read_parquet(job.dataset))
            write_parquet(scores, pairs)
        while not scores.is_file():  # the first of several processes writes it
            time.sleep(0.1)
        scored_under = json.loads(pl.read_parquet(scores, columns=["scored_under"]).item(0, 0))
        adapter = self.path(maker)
        return replace(job, reference=adapter, scores=scores, scored_under=scored_under)

    def _fit(self, job: Job, title: str) -> dict[str, Any]:
        """Train, with nothing beside that holds most of a GPU, however many bases are kept."""
        self._writers.close_engines()
        return fit(job, title, self.progress, self._trainers, self._keep)

    def evaluate(
        self, policies: list[Policy], against: str | None = None, redo: bool = False
    ) -> Evaluation:
        """Measure policies on the test prompts, as the recipe's `eval` says."""
        if self.recipe.engine.name != "fake":
            pretrain([self.recipe.agents[policy.agent].base for policy in policies], self.progress)
        return evaluate(self.context(redo), policies, against)

    def export(
        self,
        form: str,
        policies: list[Policy],
        against: str | None,
        prompts: Path | None,
        to: Path | None,
        redo: bool = False,
    ) -> list[str]:
        """Write one policy's answers for another evaluator, or a blind sheet for people.

        Returns:
            What was written, in lines.

        Raises:
            MacpoError: it is not said what, whose or where.
        """
        from macpo_data.evaluation import exports, sheets

        positive = [policy for policy in policies if policy.behavior == "positive"]
        if len(positive) != 1:
            raise MacpoError(
                f"an export is of one policy, not of {len(positive)}; name it with --agents and "
                "--round"
            )
        if to is None:
            raise MacpoError("where to? name a file with --to")
        if to.exists():
            raise MacpoError(f"{to} exists already; move it away, or name another file with --to")
        if form == "human":
            against = against or self.recipe.eval.against
            if against is None:
                raise MacpoError("a sheet compares two; name the baseline with --against")
            key = sheets.write_sheet(self.context(redo), positive[0], against, to)
            return [f"wrote  {to}", f"wrote  {key}, which keeps who is who: not for annotators"]
        if prompts is None:
            raise MacpoError(f"name the prompts of {form} with --prompts FILE")
        count, empty = exports.export(self.context(redo), positive[0], form, prompts, to)
        return [f"wrote  {to}: {count} answers of {positive[0]}, {empty} of them empty"]

    def train_reward(self, redo: bool = False) -> Path:
        """Train the run's own reward model on D1's human pairs, and return its folder.

        Its manifest holds the accuracy on the test prompts' human pairs, by the model as saved.

        Raises:
            MacpoError: there are no human pairs, or anything else that a person can mend.
        """
        from macpo_train.job import Job

        recipe, agent, name = self.recipe, self.plan.reward_agent, self.plan.reward_name
        if agent.endpoint is not None:
            raise ModelError("the student has no weights here; name others with reward.base")
        fake = recipe.engine.name == "fake"
        with self.store.lock(name):
            if redo:
                self.store.aside(name)
            if self.store.is_done(name):
                return self.store.path(name)
            context = self.context(redo)
            pairs = context.human_pairs("d1").pairs
            write_parquet(self.store.path(name) / "pairs.parquet", pairs)
            if not fake:
                pretrain([agent.base], self.progress)
            job = Job(
                dataset=self.store.path(name) / "pairs.parquet",
                column="chosen",
                base=models.Base(agent.base, None) if fake else self.lock.base(agent),
                chat_template=agent.chat_template,
                start=None,
                out=self.store.path(name) / "model",
                settings=recipe.reward,
                lora=recipe.lora,
                train=recipe.train,
                seed=recipe.seed,
                fake=fake,
                logs=self.store.path("logs"),
            )
            facts = self._fit(job, "training the reward model")
            facts |= self._held_out(context.prompts("test"))
            facts |= {"kind": "reward", "format": FORMAT, "base": job.base.id}
            facts |= {"base_revision": job.base.revision, "recipe": recipe.model_dump(mode="json")}
            made_from = {self.plan.prompts_name: self.store.content(self.plan.prompts_name)}
            self.store.finish(name, facts | {"inputs": made_from, **versions()})
        return self.store.path(name)

    def _held_out(self, prompts: pl.DataFrame) -> dict[str, Any]:
        """How often the run's reward model, as saved, scores the human's chosen answer higher."""
        from macpo_data.generation import reward_model as reward

        pairs = prompts.drop_nulls(["chosen", "rejected"])
        sides = pl.concat(
            pairs.select("prompt_id", "prompt", response=side, finish_reason=pl.lit("stop"))
            for side in ("chosen", "rejected")
        )
        scorer = reward.trained_scorer(self.plan, self.store, self.lock)
        told = (self.recipe.engine, scorer, sides)
        with self.progress("scoring held-out pairs") as report:
            if self.recipe.engine.name == "fake":
                found = reward.rewards(report, *told)
            else:
                worker = self._writers.get(f"the reward model {scorer.base.id}")
                found = worker.call(
                    "macpo_data.generation.reward_model:rewards", *told, report=report
                )
        return reward.accuracy(found[: len(pairs)], found[len(pairs) :])

    def _scored_under(self, dataset: str, start: Policy) -> dict[str, Any] | None:
        """What the scores of a dataset depend on, where they are those of one policy, `start`."""
        manifest = self.store.manifest(dataset) or {}
        scored: dict[str, Any] = manifest.get("scored_under", {})
        return scored[str(start)] if list(scored) == [str(start)] else None

    def _facts(self, step: Step, made_from: dict[str, str]) -> dict[str, Any]:
        """What every step's manifest says."""
        return {
            "kind": step.kind,
            "format": FORMAT,
            "method": step.method or self.recipe.method,
            "round": step.round,
            "learner": step.learner,
            "behavior": step.behavior,
            "fingerprint": self.plan.fingerprint(step),
            "reads": {path: self.recipe.read(path) for path in step.reads},
            "inputs": made_from,
            "recipe": self.recipe.model_dump(mode="json"),
            **versions(),
        }


def _first() -> bool:
    """Inside `accelerate launch` every process trains, and the first one keeps the books."""
    return os.environ.get("RANK", "0") == "0"


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def summary(data: RoundData) -> dict[str, Any]:
    """Counts and means that say at a glance what a dataset is."""
    pairs = data.pairs

    def counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
        return dict(frame[column].drop_nulls().value_counts().sort(column).iter_rows())

    def mean(expression: pl.Expr) -> float | None:
        value = pairs.select(expression.mean()).item()
        return None if value is None else round(float(value), 4)

    return {
        "pairs": len(pairs),
        "prompts": pl.concat(
            frame["prompt_id"] for frame in (pairs, data.candidates, data.dropped)
        ).n_unique(),
        "candidates": len(data.candidates),
        "caught_by_reason": counts(data.candidates, "reason"),
        "dropped_by_reason": counts(data.dropped, "reason"),
        "chosen_by_agent": counts(pairs, "chosen_agent"),
        "chosen_chars": mean(pl.col("chosen").str.len_chars()),
        "rejected_chars": mean(pl.col("rejected").str.len_chars()),
        "chosen_perplexity": mean(pl.col("chosen_perplexity")),
        "rejected_perplexity": mean(pl.col("rejected_perplexity")),
    }
