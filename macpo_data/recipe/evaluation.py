"""Sections judge and eval: the judge, and what is evaluated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from macpo_data import prompts
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.section import KNOB, Count, Place, Section, digest

TRAINED = "trained"  # names the reward model that `macpo train --reward` makes


class RewardModel(Section):
    """A sequence classifier that scores an answer. A recipe may give just its name."""

    model: Annotated[Place, Field(min_length=1)]
    """Id on the Hub, a folder, or trained: the one that `macpo train --reward` makes."""
    revision: str = "main"
    """Commit, tag or branch on the Hub; pinned in lock.json when first read."""
    chat_template: str = "tokenizer"
    """How messages become text, as for agents."""
    head: Annotated[int, Field(strict=True)] | list[float] | None = None
    """Of several outputs: which one, or a weight for each; null where there is one."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Either form, as `_named` takes them."""
        return {"anyOf": [{"type": "string"}, handler(core_schema)]}

    @property
    def agent(self) -> Agent:
        """What its weights are, in the form in which bases are pinned and loaded."""
        return Agent(
            role="judge", base=self.model, revision=self.revision, chat_template=self.chat_template
        )


class JudgePrompts(Section):
    """What a judge is asked: names of the package's own prompts, or files."""

    verdict: str = "verdict"
    """One model's verdict on query and both answers (kind llm)."""
    criteria: str = "criteria"
    """Which criteria matter for this pair (kind mixture)."""
    critique: str = "critique"
    """A proposer's review (kind mixture)."""
    weigh: str = "weigh"
    """The verdict on query, answers, criteria and reviews (kind mixture)."""
    points: str = "points"
    """What one answer to the query is worth (kind points)."""

    def identity(self) -> dict[str, Any]:
        """A prompt counts by its text."""
        return {name: digest(prompts.read(path)) for name, path in super().identity().items()}


class Judge(Section):
    """Who compares two answers, and how its verdicts become a ranking."""

    kind: Literal["gold", "llm", "mixture", "reward", "likelihood", "points"]
    """gold: the embedded world's own judge, in code. llm: one agent. mixture: proposers review, the
    agent decides. reward: a sequence classifier, whose higher score wins. likelihood: how probable
    the agent finds an answer. points: the agent gives each answer by itself 0 to 5."""
    reward: RewardModel | None = None
    """The classifier, if the judge is one: its name, or a section."""
    agent: str | None = None
    """Who gives the verdict, and chooses the criteria of a mixture."""
    proposers: list[str] = Field(default=[])
    """Who review, if the judge is a mixture."""
    criteria: Annotated[int, Field(ge=0, le=8)] = 3
    """How many of the eight criteria are chosen for each pair; 0 takes all, unasked."""
    prompts: JudgePrompts = JudgePrompts()
    """What they are asked: texts of the package's own by their names, or files."""
    sampling: Sampling = Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=1024)
    """How judges write. Kind points takes the mean of n draws."""
    pairs: Literal["all", "swiss", "first_vs_rest"] = "all"
    """Which answers of a prompt meet. all: each meets each. swiss: each meets the next by score,
    ceil(log2 n) times. first_vs_rest: the first meets all others."""
    merge: Literal["each", "agree"] = "each"
    """Each pair is judged in both orders. each: a win for each verdict, so a disagreement is half
    each. agree: a win only where both orders say so."""
    ties: Literal["random", "first"] = "random"
    """Between answers of one score: one at random (seeded), or the first."""
    max_position_bias: Annotated[float, Field(ge=0.5, le=1.0), KNOB] = 0.75
    """Stop where one position wins a larger share of the verdicts."""

    @model_validator(mode="after")
    def _has_agents(self) -> Judge:
        if self.kind in ("llm", "mixture", "likelihood", "points") and not self.agent:
            raise ValueError(f"kind {self.kind} needs an agent that gives the verdict")
        if self.kind == "reward" and self.reward is None:
            raise ValueError("kind reward needs a reward model")
        if self.kind == "mixture" and not self.proposers:
            raise ValueError("kind mixture needs proposers")
        if self.kind == "points" and self.sampling.n > 1 and self.sampling.temperature == 0:
            raise ValueError("sampling.n above 1 needs a sampling.temperature above 0")
        return self

    def identity(self) -> dict[str, Any]:
        """The prompt of points, later than the others, is none of another kind."""
        values = super().identity()
        if self.kind != "points":
            del values["prompts"]["points"]
        return values


class EvalSampling(Section):
    """How policies answer the prompts they are measured on: greedily, so that no draw counts."""

    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    """0 is greedy, the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the most probable tokens up to this share of the probability; 1 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep this many most probable tokens; 0 keeps all."""
    max_new_tokens: Count | None = None
    """Tokens of an answer at most; null: as in the section `sampling`."""
    n: Count = 1
    """Answers per prompt, each prompt counting with their mean; several need a temperature."""

    @model_validator(mode="after")
    def _differ(self) -> EvalSampling:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n: greedy answers are all the same; raise temperature, or set n=1")
        return self


class Eval(Section):
    """How `macpo eval` measures policies on the held-out prompts."""

    sampling: EvalSampling = EvalSampling()
    """How policies answer the held-out prompts: greedily, so that the policies are measured and not
    the dice."""
    by: Literal["answer"] | None = None
    """answer: an answer is worth 1 where it agrees with the right one (data.right), and 0 where it
    does not. null: answers are compared with none."""
    reward: RewardModel | None = None
    """Scores each answer by itself: trained for the run's own reward model, or a sequence
    classifier's Hub id or folder, as a section where it needs a revision, a chat_template or a
    head; null: none."""
    judge: Judge | None = None
    """Who compares answers with the baseline's, as in a section `judge`; null takes that one, and
    the embedded world has its own."""
    against: str | None = None
    """The baseline: a policy such as student-positive-0 or student-base, or chosen for the human's
    answer; null compares with nobody."""
    ceiling: bool = False
    """Whether the student is also fine-tuned on the good answers of D2, as the ceiling of what weak
    teachers can make of it: then the share of the gap that was recovered is told. Method moaa has
    no teachers, and so no such gap."""
