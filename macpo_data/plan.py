"""The plan of a run: a method's steps in order, each with its fingerprint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from macpo_data.recipe.agents import Agent
from macpo_data.recipe.evaluation import TRAINED
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import digest

# Raise it when the same recipe would no longer give the same result.
FORMAT = 2

CHECKPOINTS = "checkpoints"  # the folder of policies whose weights were all trained
MEASURED = ("test", "probe")  # parts of the data whose answers are measured, and never learned
# ceiling: see methods/ceiling.py; reward: the run's own reward model, which speaks for nobody.
Behavior = Literal["positive", "negative", "ceiling", "reward"]
Objective = Literal["sft_chosen", "sft_rejected", "dpo", "reward"]


@dataclass(frozen=True)
class Policy:
    """The weights that speak: an agent as trained in a round, or its bare base (round None)."""

    agent: str
    behavior: Behavior = "positive"
    round: int | None = None

    def __str__(self) -> str:
        """As a person would call it: student-positive-2."""
        return f"{self.agent}-{'base' if self.round is None else f'{self.behavior}-{self.round}'}"


@dataclass(frozen=True)
class Step:
    """One `gen` of a learner's dataset, or one `train` of a learner's behavior, in one round."""

    kind: Literal["gen", "train"]
    round: int
    turn: int  # order inside the round
    learner: str
    behavior: Behavior = "positive"  # train: which policy it makes; gen: ceiling, or positive
    objective: Objective | None = None  # train: what is minimised
    # gen: who writes and scores; train: where it starts, then its reference if that is another.
    policies: tuple[Policy, ...] = ()
    reads: tuple[str, ...] = ()  # dotted recipe paths that decide the result
    method: str = ""  # whose rule it is, where several methods share it; empty: the recipe's
    dataset_round: int | None = None  # train: whose dataset it reads; None: that of its own round

    def __str__(self) -> str:
        """As a person would call it: gen round 2 student."""
        return f"{self.kind} round {self.round} {self.learner}{self._of}"

    @property
    def what(self) -> str:
        """Without its round and learner: gen, or train positive."""
        return f"{self.kind}{self._of}"

    @property
    def _of(self) -> str:
        return f" {self.behavior}" if self.kind == "train" or self.is_ceiling else ""

    @property
    def is_ceiling(self) -> bool:
        """Whether it belongs to the ceiling, from which no round learns."""
        return self.behavior == "ceiling"

    @property
    def makes(self) -> Policy | None:
        """The policy that a train step makes; None where it makes none."""
        if self.kind == "gen" or self.objective == "reward":
            return None
        return Policy(self.learner, self.behavior, self.round)


def round_of(name: str) -> int | None:
    """The round of a dataset or positive adapter, by its folder as `Plan.name` has it."""
    numbered = re.search(r"(?:^data/round|-positive)-(\d+)-", name)
    return int(numbered[1]) if numbered else None


class Plan:
    """A method's steps for one recipe, in an order in which each comes after its parents."""

    def __init__(self, recipe: Recipe, steps: Sequence[Step]) -> None:
        """Take the steps as the method gave them."""
        self.recipe = recipe
        self.steps = list(steps)
        self._fingerprints: dict[Step, str] = {}

    @property
    def last_round(self) -> int:
        """The last round that has steps: a method may end before the recipe's last one."""
        return max(step.round for step in self.steps)

    @cached_property
    def _makers(self) -> dict[Policy, Step]:
        return {policy: step for step in self.steps if (policy := step.makes)}

    @cached_property
    def _datasets(self) -> dict[tuple[int, str, bool], Step]:
        return {(s.round, s.learner, s.is_ceiling): s for s in self.steps if s.kind == "gen"}

    def maker(self, policy: Policy) -> Step | None:
        """The train step that makes a policy; None for a bare base."""
        return None if policy.round is None else self._makers[policy]

    def dataset(self, step: Step) -> Step:
        """The gen step whose dataset a train step reads."""
        round_ = step.round if step.dataset_round is None else step.dataset_round
        return self._datasets[round_, step.learner, step.is_ceiling]

    def earlier(self, step: Step, round_: int) -> Step | None:
        """The gen step of the same learner in a round before; None where there is none."""
        key = round_, step.learner, step.is_ceiling
        return self._datasets.get(key) if round_ < step.round else None

    def parents(self, step: Step) -> list[Step]:
        """The steps whose results a step reads."""
        if step.objective == "reward":
            return []  # people's own pairs
        makers = [maker for policy in step.policies if (maker := self.maker(policy))]
        if step.kind == "train":
            return [self.dataset(step), *makers]
        own_judge = "judge" in step.reads and self._has_own_judge
        return [*makers, *(s for s in self.steps if own_judge and s.objective == "reward")]

    @cached_property
    def prompts_fingerprint(self) -> str:
        """Of the three parts of the data. Noise is no part of it: it is laid over them later."""
        noise = ("noise", "label_noise")
        data = {k: v for k, v in self.recipe.read("data").items() if k not in noise}
        parts = [getattr(self.recipe.data, part) for part in ("d1", "d2", "test")]
        # Since a limit bounds both datasets of a part together, it draws others.
        both = ["together"] if self.recipe.data.limit and any(p.more for p in parts) else []
        return digest(["prompts", FORMAT, data, self.recipe.seed, *both])

    def policy_fingerprint(self, policy: Policy) -> str:
        """Of a policy: its train step's, or that of its base."""
        maker = self.maker(policy)
        if maker is None:
            return digest(["base", FORMAT, self.recipe.read(f"agents.{policy.agent}")])
        return self.fingerprint(maker)

    def engine_identity(self, policy: Policy) -> dict[str, Any]:
        """What of the engine's settings decides what a policy writes: a server heeds none."""
        engine: dict[str, Any] = self.recipe.read("engine")
        served = self.maker(policy) is None and self.recipe.agents[policy.agent].endpoint
        return {"fake": engine["fake"]} if served else engine

    def sampling(self, part: str) -> Sampling:
        """How policies write to a part of the data: to learn from it, or to be measured."""
        return self.recipe.eval_sampling if part in MEASURED else self.recipe.sampling

    def sample_fingerprint(self, policy: Policy, part: str, draw: str) -> str:
        """Of what one policy wrote for one part of the data, whoever learns from it."""
        sampling = {k: v for k, v in self.sampling(part).identity().items() if k != "n"}
        reads = [sampling, self.engine_identity(policy), self.recipe.seed]
        made_from = [self.policy_fingerprint(policy), self.prompts_fingerprint, part, draw]
        return digest(["samples", FORMAT, reads, made_from])

    def fingerprint(self, step: Step) -> str:
        """8 hex digits of what decides a step's result: the fields it reads and its parents."""
        if step.objective == "reward":
            return self.reward_name.partition("/")[2]
        if step not in self._fingerprints:
            fields = {path: self.recipe.read(path) for path in step.reads}
            if step.kind == "train":
                # Which hardware trains is no identity, but whether anything does is.
                fields["engine.fake"] = self.recipe.engine.name == "fake"
            if "judge" in step.reads and self._has_own_judge:
                fields["judge.reward.trained"] = self.reward_name
            parents = [self.policy_fingerprint(p) for p in step.policies]
            parents.append(
                self.fingerprint(self.dataset(step))
                if step.kind == "train"
                else self.prompts_fingerprint
            )
            method = step.method or self.recipe.method
            who = [step.kind, method, step.round, step.learner, step.behavior]
            self._fingerprints[step] = digest([FORMAT, who, step.objective, fields, parents])
        return self._fingerprints[step]

    def name(self, step: Step) -> str:
        """The folder of a step's result inside the run."""
        if step.objective == "reward":
            return self.reward_name
        fingerprint = self.fingerprint(step)
        if step.kind == "gen":
            ceiling = "-ceiling" if step.is_ceiling else ""
            return f"data/round-{step.round}-{step.learner}{ceiling}-{fingerprint}"
        kind = CHECKPOINTS if self.recipe.finetuning(step.learner) == "full" else "adapters"
        return f"{kind}/{step.learner}-{step.behavior}-{step.round}-{fingerprint}"

    def is_sample_of(self, name: str, policy: Policy) -> bool:
        """Whether a folder holds what one of its policies wrote, for any part and draw."""
        written = re.fullmatch(rf"samples/{re.escape(str(policy))}-(.+)-[0-9a-f]{{8}}", name)
        part, _, draw = written[1].partition("-") if written else ("", "", "")
        return bool(written) and self.sample_name(policy, part, draw) == name

    def is_asked_of(self, name: str, policy: Policy) -> bool:
        """Whether a folder holds scores or answers by one of its policies, of any texts."""
        own = f"{re.escape(str(policy))}-(.+-)?{self.policy_fingerprint(policy)}"
        return bool(re.fullmatch(rf"(scores|answers)/{own}-[0-9a-f]{{8}}", name))

    @property
    def _has_own_judge(self) -> bool:
        """Whether the judge is the run's own reward model, whose training then decides as well."""
        judge = self.recipe.judge
        if judge is None or judge.kind != "reward" or judge.reward is None:
            return False
        return judge.reward.model == TRAINED

    @property
    def reward_agent(self) -> Agent:
        """Whose weights the run's own reward model starts from."""
        own = self.recipe.reward
        if own.base is None:
            return self.recipe.agents[self.recipe.students[0]]
        return Agent(
            role="judge", base=own.base, revision=own.revision, chat_template=own.chat_template
        )

    @cached_property
    def reward_name(self) -> str:
        """The folder of the run's own reward model inside the run."""
        recipe, own = self.recipe, self.recipe.reward
        how = [recipe.reward_finetuning == "full", own.epochs, own.learning_rate, own.batch_size]
        how += [recipe.read("lora"), recipe.read("train"), recipe.seed]
        made_from = [self.prompts_fingerprint, self.reward_agent.identity()]
        if recipe.select.excludes:  # which of D1's prompts it may learn from
            reads = ("test_sets", "ngram", "ngram_share", "near_duplicates")
            made_from += [{k: v for k, v in recipe.read("select").items() if k in reads}]
        fake = recipe.engine.name == "fake"
        return f"reward/{digest(['reward', FORMAT, how, made_from, fake])}"

    @property
    def prompts_name(self) -> str:
        """The folder of the prompts inside the run."""
        return f"data/prompts-{self.prompts_fingerprint}"

    def sample_name(self, policy: Policy, part: str, draw: str) -> str:
        """The folder of a sample set inside the run."""
        return f"samples/{policy}-{part}-{draw}-{self.sample_fingerprint(policy, part, draw)}"
