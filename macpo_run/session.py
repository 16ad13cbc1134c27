"""An open run: its recipe, plan, store and worker processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from macpo_data.evaluation import evaluate
from macpo_data.generation.run_context import RunContext
from macpo_data.methods.registry import make_plan
from macpo_data.models.base import Base
from macpo_data.models.worker import Closed, Progress, Worker, Workers
from macpo_data.plan import Plan, Policy, Step
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.recipe import Recipe
from macpo_data.store.pins import Lock
from macpo_data.store.store import State, Store, states
from macpo_run.live_status import NOTES, noted
from macpo_run.training import fit, make_bases

if TYPE_CHECKING:
    from macpo_data.evaluation.results import Evaluation
    from macpo_train.job import Job


class Session(Closed):
    """What the making of any step needs."""

    def __init__(
        self,
        recipe: Recipe,
        runs: Path,
        progress: Progress,
        say: Callable[[str], None],
        *,
        label: str | None = None,
        options: str = "",
    ) -> None:
        """Nothing is read or started yet.

        Args:
            recipe: what is to be made.
            runs: the folder of all runs.
            progress: shows how far a long piece of work is.
            say: prints a line that is no part of a result.
            label: the run's name on a page of several; by default that of its folder.
            options: those of the command line that lead to this run, for the next command; they
                begin with a blank where there are any.
        """
        self.recipe = recipe
        self.label = label or recipe.run
        self.options = options
        self.plan: Plan = make_plan(recipe)
        self.store = Store(runs / recipe.run, say)
        self._shown = progress
        self.progress = noted(progress, self.store.root / NOTES)
        self.say = say
        self._keep = recipe.engine.keep_loaded > 1
        self._writers = Workers(recipe.engine.keep_loaded)
        self._trainers = Workers(1)

    def close(self, kill: bool = False) -> None:
        """End the processes; the next step starts new ones."""
        self._writers.close(kill)
        self._trainers.close(kill)

    def beside(self, recipe: Recipe) -> Self:
        """The run of a variant in the same folder, by the same processes where they fit it."""
        other = type(self)(recipe, self.store.root.parent, self._shown, self.say)
        if recipe.engine == self.recipe.engine:
            other._writers, other._trainers = self._writers, self._trainers
        return other

    @cached_property
    def lock(self) -> Lock:
        """The pins of this run."""
        return Lock(self.store.root)

    def context(self, redo: bool = False) -> RunContext:
        """What builds datasets; `redo` makes damaged parts anew."""
        return RunContext(self.plan, self.store, self._writers, self.progress, redo)

    def states(self) -> dict[Step, State]:
        """The state of every step."""
        return states(self.plan, self.store)

    def path(self, step: Step) -> Path:
        """Where a step's result is or will be."""
        return self.store.path(self.plan.name(step))

    def base(self, agent: Agent) -> Base:
        """An agent's base at its pinned revision; the fake engine asks nobody for one."""
        fake = self.recipe.engine.name == "fake"
        return Base(agent.base, None) if fake else self.lock.base(agent)

    def writer(self, name: str) -> Worker:
        """A process that writes or scores, by the name of what it loads."""
        return self._writers.get(name)

    def has_loaded(self, base: str) -> bool:
        """Whether a process has a base in its memory."""
        return self._writers.has(base)

    def prepare_bases(self, step: Step) -> None:
        """Make the recipe's bases that are cached here, where they are missing, all at once."""
        if self.recipe.engine.name == "fake" or (step.kind == "gen" and not step.policies):
            return
        make_bases([agent.base for agent in self.recipe.agents.values()], self.progress)

    def fit(self, job: Job, title: str) -> dict[str, Any]:
        """Train, with nothing beside that holds most of a GPU, however many bases are kept."""
        self._writers.close_engines()
        return fit(job, title, self.progress, self._trainers, self._keep)

    def evaluate(
        self, policies: list[Policy], against: str | None = None, redo: bool = False
    ) -> Evaluation:
        """Measure policies on the test prompts, as the recipe's `eval` says."""
        if self.recipe.engine.name != "fake":
            bases = [self.recipe.agents[policy.agent].base for policy in policies]
            make_bases(bases, self.progress)
        return evaluate.evaluate(self.context(redo), policies, against)
