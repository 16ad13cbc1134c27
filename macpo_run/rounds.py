"""Runs the steps of a run, round by round.

`gen` and `train` make whatever of theirs is ready in a round and say what waits for what.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from macpo_data.errors import MacpoError, as_set, did_you_mean, of_run
from macpo_data.evaluation import probe
from macpo_data.plan import Step
from macpo_data.recipe.recipe import MAX_ROUNDS
from macpo_data.store.store import State
from macpo_run import datasets, policies
from macpo_run.session import Session
from macpo_train import ranks

Kind = Literal["gen", "train"]
STALE = "it is damaged, or made from what changed since: --redo makes it anew"


@dataclass
class Outcome:
    """What a command did."""

    wrote: list[tuple[Step, Path]] = field(default_factory=list)
    kept: list[tuple[Step, Path]] = field(default_factory=list)  # was done already
    waiting: dict[Step, list[str]] = field(default_factory=dict)  # what each waits for


class Run(Session):
    """The rounds of one recipe."""

    on_step: Callable[[Step], None] = staticmethod(lambda step: None)  # hears of each that is made

    def select(self, kind: Kind | None, round_: int, learner: str | None = None) -> list[Step]:
        """The steps of a round, of one kind and learner where they are named.

        Raises:
            MacpoError: the recipe has no such round or learner.
        """
        last = self.plan.last_round
        if not 0 <= round_ <= last:
            more = f"for more say --set rounds={round_}"
            if round_ > MAX_ROUNDS:
                more = f"a recipe may have {MAX_ROUNDS} at most"
            if last < self.recipe.rounds:
                more = f"method {self.recipe.method} has no more"
            raise MacpoError(
                f"no round {round_}: this recipe has rounds 0..{last}"
                + (f"; {more}" if round_ > 0 else "")
            )
        if learner is not None and learner not in self.recipe.agents:
            raise MacpoError(
                f"no learner {learner!r}{did_you_mean(learner, self.recipe.agents)}: choose "
                f"{', '.join(dict.fromkeys(step.learner for step in self.plan.steps))}"
            )
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

    def dataset_step(self, round_: int, learner: str | None = None) -> Step:
        """The step whose dataset of a round is there: the student's where nobody is named.

        Raises:
            MacpoError: the round has no dataset yet.
        """
        states = self.states()
        steps = [step for step in self.select("gen", round_, learner) if not step.is_ceiling]
        done = [step for step in steps if states[step] in ("done", "stale")]
        if not done:
            command = of_run(f"gen --round {round_}")
            raise MacpoError(
                f"round {round_} has no dataset yet{self.store.beside()}{as_set()}; run `{command}`"
            )
        return next((s for s in done if s.learner in self.recipe.students), done[0])

    def waits_for(self, step: Step, states: dict[Step, State]) -> list[str]:
        """Which parents of a step are missing or stale."""
        return [
            str(parent) + (" (stale)" if states[parent] == "stale" else "")
            for parent in self.plan.parents(step)
            if states[parent] != "done"
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
        states = self.states()
        while step := self._next(todo, states, redo):
            todo.remove(step)
            is_new = self._once(step, states, redo)
            if is_new:
                self.on_step(step)
            (outcome.wrote if is_new else outcome.kept).append((step, self.path(step)))
            states = self.states()
        outcome.waiting = {step: self.waits_for(step, states) or [STALE] for step in todo}
        if kind == "train":
            self._read_probe(round_)
        if not self._keep:
            self.close()
        return outcome

    def _next(self, todo: list[Step], states: dict[Step, State], redo: bool) -> Step | None:
        """The step to make now; None where nothing is ready."""
        able = [s for s in todo if states[s] in ("done", "ready") or self._may(s, states, redo)]
        if not able:
            return None
        # Steps on the base that is loaded already go first.
        bases = {step: self.recipe.agents[step.learner].base for step in able}
        return min(able, key=lambda step: (step.turn, not self.has_loaded(bases[step])))

    def _once(self, step: Step, states: dict[Step, State], redo: bool) -> bool:
        """Make a step unless it is done; whether it was made here."""
        name = self.plan.name(step)
        again = self._may(step, states, redo)
        if states[step] == "done" and not again:
            return False
        if ranks.count() > 1 and (again or step.kind == "gen"):
            raise MacpoError(
                f"{step}: several processes only train, and without --redo; run this without "
                "accelerate launch (train.launcher starts processes where they are wanted)"
            )
        self.prepare_bases(step)
        with self.store.lock(name) if ranks.is_first() else nullcontext():
            if again and (old := self.store.aside(name)):
                self.say(f"{step}: the old result is in {old}")
            if self.store.is_done(name):
                return False
            if step.kind == "gen":
                datasets.write(self, step, redo)
            else:
                policies.train(self, step)
        return True

    def _read_probe(self, round_: int) -> None:
        """Let what was trained in a round read the probe, and round 0, which others are held to.

        What was pulled needs no source, and several processes only train.
        """
        if ranks.count() > 1 or not self.store.is_done(self.plan.prompts_name):
            return
        states = self.states()
        read = [s for r in dict.fromkeys((0, round_)) for s in self.select("train", r)]
        trained = [s.makes for s in read if states[s] == "done"]
        voices = [p for p in trained if p and (p.behavior == "positive" or p.round == 0)]
        # Nothing is made from it, so that what became stale is simply made again.
        context = self.context(redo=True)
        probe.measure(context, [p for p in voices if p.behavior != "ceiling"])

    def _may(self, step: Step, states: dict[Step, State], redo: bool) -> bool:
        """Whether --redo was said and everything that the step is made from is fresh."""
        return redo and not self.waits_for(step, states)

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
            states = self.states()
            ready = any(states[step] == "ready" for step in steps)
        for step in steps:
            if states[step] != "done":
                whole.waiting[step] = self.waits_for(step, states) or [STALE]
        return whole

    def ended(self, round_: int) -> str | None:
        """Why a run ends after a round, as `stop` says; None where it goes on."""
        if self.recipe.stop == "probe":
            return self._spoilt(round_)
        return self._converged(round_) if self.recipe.stop == "converged" else None

    def _spoilt(self, round_: int) -> str | None:
        """Whether the student finds the probe's chosen answers too odd after a round."""
        (student,), readings = self.recipe.students, probe.readings(self.plan, self.store)
        top = probe.line(self.recipe, readings)
        now = [r for r in probe.of_agent(readings, student) if r.policy.round == round_]
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
        perplexities = []
        for each in (round_ - 1, round_):
            (step,) = self.select("gen", each, student)
            manifest = self.store.manifest(self.plan.name(step)) or {}
            perplexities.append(manifest.get("summary", {}).get("chosen_perplexity"))
        before, now = perplexities
        if not before or not now or (before - now) / before >= self.recipe.stop_below:
            return None
        return (
            f"converged: the student's perplexity of what it learns was {before:.2f} in round "
            f"{round_ - 1} and is {now:.2f} in round {round_} (stop_below {self.recipe.stop_below})"
        )

    def ended_after(self) -> int | None:
        """The round after which `run` ends before the last one; None where it does not."""
        return next((t for t in range(self.plan.last_round + 1) if self.ended(t)), None)
