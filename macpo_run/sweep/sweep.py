"""Runs a study: all variants and seeds in one run folder, each shared step once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from macpo_data.errors import Interrupted, MacpoError, StoreError, did_you_mean, first_line, plain
from macpo_data.evaluation import gap
from macpo_data.evaluation.policies import CHOSEN, every_policy, find_policy, trained
from macpo_data.evaluation.results import Evaluation
from macpo_data.generation.cost import measure
from macpo_data.models.worker import Progress
from macpo_data.outside import parse_json, read_bytes
from macpo_data.plan import Policy, Step
from macpo_data.planning.hardware import Hardware
from macpo_data.planning.outlook import Outlook, outlook, together
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import digest
from macpo_data.store.manifests import MANIFEST
from macpo_data.store.store import atomic, write_json, write_parquet
from macpo_run.preflight.finding import Checks
from macpo_run.preflight.needs import needs
from macpo_run.preflight.voices import coming
from macpo_run.rounds import Run
from macpo_run.sweep import budget
from macpo_run.sweep.budget import Budget
from macpo_run.sweep.plot import plot
from macpo_run.sweep.provenance import Provenance, provenance
from macpo_run.sweep.standings import MADE, Measured, Standings
from macpo_run.sweep.study import Study, Variant
from macpo_run.sweep.table import markdown
from macpo_run.sweep.time_left import (
    Task,
    in_words,
    key_of,
    seconds_left,
    size_of,
    task_of,
)

FOLDER = "sweep"  # inside the run
_RECORD = TypeAdapter(list[tuple[str, Recipe]])  # the variants of a sweep
T = TypeVar("T")


@dataclass(frozen=True)
class Outline:
    """What a sweep would make, for a person to read beforehand."""

    root: Path
    seeds: list[int]
    variants: list[tuple[str, int, int, int]]  # name, steps, those no variant above has, to make
    distinct: int
    todo: int
    left: str


class Sweep:
    """The runs of a study's variants, which share a folder and processes."""

    def __init__(
        self,
        study: Study,
        variants: list[Variant],
        runs: Path,
        progress: Callable[[str], Any],
        say: Callable[[str], None],
        name: str | None = None,
    ) -> None:
        """Nothing is read or started yet.

        Raises:
            MacpoError: somebody who is to be measured, or compared with, is trained in no variant,
                or nothing measures.
        """
        self.study, self.variants, self.say = study, variants, say
        self._title = ""
        shown: Progress = lambda title: progress(f"{self._title}{title}")  # noqa: E731
        self.home = Run(variants[0].recipe, runs, shown, say)
        self.runs = [self.home.beside(variant.recipe) for variant in variants]
        self.agents = list(dict.fromkeys(study.agents or self.home.recipe.students))
        self.recipes = [[v.name, v.recipe.model_dump(mode="json")] for v in variants]
        self.digest = digest(self.recipes)
        self._words_in = cache(partial(budget.words_in, self.home.store))  # variants share many
        # Two studies may share a run's folder.
        self.folder = self.home.store.root / FOLDER / re.sub(r"[^\w-]", "_", name or self.digest)
        trained_agents = set[str]()
        for variant, run in zip(variants, self.runs, strict=True):
            recipe, against = run.recipe, run.recipe.eval.against
            if not (recipe.has_gold or recipe.eval.reward or recipe.eval.against):
                raise MacpoError(
                    "nothing would measure the answers: set eval.reward to a reward model, "
                    "eval.against to a baseline for a judge, or eval.by=answer with data.right"
                )
            if against not in (None, CHOSEN):
                try:
                    find_policy(run.plan, against)
                except MacpoError as error:
                    raise MacpoError(f"{variant.name}: eval.against: {error}") from None
            trained_agents |= {policy.agent for policy in every_policy(run.plan)}
        if wrong := [agent for agent in self.agents if agent not in trained_agents]:
            raise MacpoError(
                f"no agent {wrong[0]!r} that is trained{did_you_mean(wrong[0], trained_agents)}: "
                f"measure {', '.join(sorted(trained_agents))}"
            )

    def _needed(self, run: Run) -> list[Step]:
        """The steps of a run without which not all can be measured, parents first.

        In the last round others would learn from a student whom nobody asks any more.
        """
        steps = _steps(run)
        policies = self._measured(run, [p for s in steps if (p := s.makes)])
        if run.recipe.eval.against not in (None, CHOSEN):
            policies.append(find_policy(run.plan, str(run.recipe.eval.against)))
        needed = budget.ancestors(run.plan, policies)
        return [step for step in steps if step in needed or step.objective == "reward"]

    def twins(self) -> list[tuple[str, str]]:
        """Variants that come out the same: every step has the same result, and its measure."""
        first: dict[tuple[str, ...], str] = {}
        seed = self.variants[0].recipe.seed
        pairs = []
        for variant, run in zip(self.variants, self.runs, strict=True):
            if variant.recipe.seed == seed:
                names = tuple(run.plan.name(step) for step in run.plan.steps)
                recipe = run.recipe
                names += (recipe.eval.model_dump_json(), recipe.stop)
                ends = (str(recipe.stop_below), str(recipe.stop_above))
                names += () if recipe.stop == "rounds" else ends
                if (other := first.setdefault(names, variant.name)) != variant.name:
                    pairs.append((other, variant.name))
        return pairs

    @property
    def steps(self) -> list[Task]:
        """Every distinct step."""
        named = {
            run.plan.name(step): (run, step)
            for run in reversed(self.runs)
            for step in reversed(self._needed(run))
        }
        return [task_of(run.recipe, name, step) for name, (run, step) in named.items()]

    @property
    def answers(self) -> list[Task]:
        """Every distinct set of held-out answers that is measured."""
        tasks = {}
        for run in self.runs:
            values = run.recipe.model_dump(mode="json")
            key = key_of(values, "eval", run.recipe.students[0])
            for policy in self._measured(run, [p for s in _steps(run) if (p := s.makes)]):
                for draw in range(run.plan.sampling("test").n):
                    name = run.plan.sample_name(policy, "test", str(draw))
                    tasks[name] = Task(name, key, size_of(values, "test"))
        return list(tasks.values())

    def todo(self, tasks: list[Task]) -> list[Task]:
        """Those of the tasks that are not done."""
        return [t for t in tasks if not (self.home.store.path(t.name) / MANIFEST).is_file()]

    def seconds_left(self) -> tuple[float, int]:
        """What is left by what was timed before: (seconds, tasks of kinds that never were)."""
        return seconds_left(self.todo(self.steps + self.answers), self.home.store.root)

    def outline(self) -> Outline:
        """What would be made."""
        own: dict[str, list[str]] = {}
        for variant, run in zip(self.variants, self.runs, strict=True):
            own.setdefault(variant.name, []).extend(run.plan.name(s) for s in self._needed(run))
        todo = {task.name for task in self.todo(self.steps)}
        rows, before = [], set[str]()
        for name, steps in own.items():
            rows.append((name, len(steps), len({*steps} - before), len({*steps} & todo)))
            before |= {*steps}
        seeds = list(dict.fromkeys(variant.recipe.seed for variant in self.variants))
        some = self.todo(self.steps + self.answers)
        left = in_words(*self.seconds_left()) if some else "nothing is left to make"
        return Outline(self.home.store.root, seeds, rows, len(before), len(todo), left)

    def needs(self) -> Checks:
        """What all that is still to be made needs, each thing once."""
        checks: Checks = {}
        for run in self.runs:
            todo = coming(run.plan, run.states(), self._needed(run))
            checks |= needs(run.plan, run.store, todo, evaluates=True)
        return checks

    def outlook(self, on: Hardware) -> tuple[Outlook, int, int]:
        """What is still to be made takes on some hardware, steps that variants share once.

        Returns:
            That of the first seed, the steps in it that are not done, and those of all seeds.
        """
        outlooks: list[Outlook] = []
        seen: set[str] = set()
        seed = self.variants[0].recipe.seed
        for variant, run in zip(self.variants, self.runs, strict=True):
            if variant.recipe.seed == seed:
                own = {run.plan.name(step): step for step in self._needed(run)}
                steps = [step for name, step in own.items() if name not in seen]
                seen |= own.keys()
                sizes = measure(run.plan, run.store)
                outlooks.append(outlook(run.plan, run.store, run.states(), steps, sizes, on))
        whole = together(outlooks)
        todo = sum(row.state != "done" for row in whole.rows)
        return whole, todo, len(self.todo(self.steps))

    def make(self) -> Standings:
        """Make and measure all variants; one that fails is reported, and the others go on.

        Raises:
            Interrupted: somebody pressed Ctrl-C; what is finished stays.
        """
        write_json(self.folder / f"variants-{self.digest}.json", self.recipes)
        measured = []
        with self.home:
            for n, run in enumerate(self.runs):
                # Processes of its own would stay until the end, beside those of all others.
                with nullcontext() if run.recipe.engine == self.home.recipe.engine else run:
                    measured.append(self._make(n))
        return Standings(measured, self.agents, self.study.primary, self._provenance())

    def _provenance(self) -> Provenance:
        """Where the results come from, as the manifests of all finished steps tell."""
        manifests = []
        for task in self.steps:
            with suppress(StoreError):  # one that was edited is its variant's problem
                manifests.append(self.home.store.manifest(task.name) or {})
        return provenance([v.recipe for v in self.variants], self.digest, manifests)

    def _make(self, n: int) -> Measured:
        variant, run = self.variants[n], self.runs[n]
        seed = variant.recipe.seed
        self._title = f"[{n + 1}/{len(self.runs)}] {variant.name}, seed {seed}: "
        mine = {run.plan.name(step) for step in self._needed(run)}
        todo = sum(task.name in mine for task in self.todo(self.steps))
        if todo:
            left = in_words(*self.seconds_left())
            self.say(f"{self._title}{todo} steps to make; the sweep: {left}")
        needed = self._needed(run)
        _, problem = _tried(run, lambda run: finish(run, needed))
        evaluation, unmeasured = _tried(run, self._measure)  # what came before a failure, too
        problem = problem or unmeasured
        if problem or todo:
            self.say(self._title + (f"failed: {problem}" if problem else _scores(evaluation)))
        yardsticks = _yardsticks(run, evaluation) if evaluation else {}
        gaps = gap.measured(run.plan, evaluation.responses) if evaluation else []
        by_measure = {each.measure: each for each in gaps}
        budgets = {} if problem else self._budgets(run)
        return Measured(
            variant.name, seed, evaluation, problem, yardsticks, by_measure, budgets,
            teachers=_teachers(run.recipe),
        )  # fmt: skip

    def _budgets(self, run: Run) -> dict[str, Budget]:
        """What each measured agent's last policy took."""
        policies = self._measured(run, [p for s in _steps(run) if (p := s.makes)])
        last = {p.agent: p for p in policies if p.agent in self.agents and p.behavior == "positive"}
        return {
            agent: budget.spent(run.plan, run.store, policy, self._words_in)
            for agent, policy in last.items()
        }

    def _measure(self, run: Run) -> Evaluation | None:
        finished = trained(run.plan, run.store, run.ended_after())
        policies = self._measured(run, finished)
        return run.evaluate(policies) if policies else None

    def _measured(self, run: Run, policies: list[Policy]) -> list[Policy]:
        """The positive policies of the agents, and with a ceiling what the gap is between."""
        teachers, ceiling = gap.ends(run.plan)
        between = [*teachers, ceiling] if ceiling else []
        mine = [p for p in policies if p.behavior == "positive" and p.agent in self.agents]
        return mine + [p for p in policies if p in between and p not in mine]


def _teachers(recipe: Recipe) -> str:
    """What decides the teachers of round 0, whether or not a method trains all of them."""
    agents = {name: recipe.agents[name].identity() for name in recipe.teachers}
    sections = (recipe.data, recipe.sft, recipe.lora, recipe.train)
    return digest([agents, *(section.identity() for section in sections)])


def _tried(run: Run, work: Callable[[Run], T]) -> tuple[T | None, str | None]:
    """What comes of it, and what is wrong where it fails."""
    try:
        return work(run), None
    except Interrupted:
        raise
    except MacpoError as error:
        problem = " ".join(str(error).split())
    except RuntimeError as error:  # such as out of memory, in whose last line it is named
        run.say(plain(str(error)))
        problem = plain(str(error).strip().split("\n")[-1])
    run.close()  # a process that ended is of no use to the next
    return None, problem


def _steps(run: Run) -> list[Step]:
    """Those of a run that are made: where it has converged, none after that."""
    last = run.ended_after()
    return [step for step in run.plan.steps if last is None or step.round <= last]


def _yardsticks(run: Run, evaluation: Evaluation) -> dict[str, str]:
    """What each measure depends on besides the policies: prompts, sampling, judge, baseline."""
    manifest = run.store.manifest(f"eval/{evaluation.paths[0].name}") or {}
    against = manifest["samples"].get(run.recipe.eval.against)
    prompts = sorted(evaluation.responses["prompt_id"].unique())
    prompts_digest = digest([prompts, evaluation.sampling.identity()])
    return {
        measure: f"{prompts_digest} {seal} {against if measure == 'win' else ''}"
        for measure, (_, seal) in manifest["by"].items()
    }


def _scores(evaluation: Evaluation | None) -> str:
    """The means of each measure, round by round."""
    rows = evaluation.table.filter(MADE).rows(named=True) if evaluation else []
    means: dict[str, list[str]] = {}
    for row in rows:
        means.setdefault(f"{row['agent']} {row['measure']}", []).append(f"{row['mean']:.3f}")
    return "; ".join(f"{what} {', '.join(values)}" for what, values in means.items())


def finish(run: Run, needed: list[Step]) -> None:
    """Make the steps of a run that are needed, up to where it has ended if its recipe says so.

    Raises:
        MacpoError: a step fails, or waits for what nobody makes.
    """
    states = run.states()
    for round_ in range(run.plan.last_round + 1):
        if any(states[step] != "done" for step in needed if step.round == round_):
            for step, why in run.finish_round(round_, needed).waiting.items():
                raise MacpoError(f"{step}: {', '.join(why)}")
        if run.ended(round_):
            return


def write(standings: Standings, folder: Path, title: str) -> list[Path]:
    """Write the table, what it was made of, and the plot where there is something to show.

    Raises:
        MacpoError: there is no plot; the table is written.
    """
    written = [folder / "results.parquet"]
    write_parquet(written[0], standings.results)
    (folder / "plot.svg").unlink(missing_ok=True)  # it may be that of another table
    for name, make in (("table.md", markdown), ("plot.svg", plot)):
        if (text := make(standings, title)) is not None:
            written.append(folder / name)
            with atomic(written[-1]) as temporary:
                temporary.write_text(text, "utf-8")
    return written


def recorded(run: Run) -> Iterator[tuple[Path, list[Run]]]:
    """The sweeps that were made in a run's folder: their record, and all their runs.

    Raises:
        MacpoError: a record cannot be read.
    """
    for path in sorted((run.store.root / FOLDER).rglob("variants-*.json")):
        try:
            record = _RECORD.validate_python(parse_json(read_bytes(path)))
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise MacpoError(f"{path}: {reason}; remove it, if its results may go") from None
        yield path, [run.beside(recipe) for _, recipe in record]
