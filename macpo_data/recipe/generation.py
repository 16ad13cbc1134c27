"""Sections sampling, select, mixture, framing: how answers are generated and selected."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from macpo_data import prompts
from macpo_data.recipe.section import LATER, Count, Place, Positive, Section, Share, digest


class Sampling(Section):
    """How policies write."""

    temperature: Annotated[float, Field(ge=0.0)] = 0.95
    """Higher is more varied; 0 is greedy, the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    """Keep the most probable tokens up to this share of the probability; 1 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Keep this many most probable tokens; 0 keeps all."""
    max_new_tokens: Count = 512
    """Tokens of an answer at most. One that reaches it is cut, and noted as such."""
    n: Annotated[Count, Field(le=1000)] = 1
    """Answers per policy and prompt, at most 1,000. In a mixture it is not read; a judge reads it
    where it gives points."""


class Select(Section):
    """Which candidates become chosen responses."""

    by: Annotated[Literal["perplexity", "judge", "reward", "random"], LATER] = "perplexity"
    """Who is best. perplexity: the answer of lowest perplexity. judge: the best by the section
    judge. reward: the same where it is a reward model. random: any."""
    under: Annotated[Literal["learner", "peers"], LATER] = "learner"
    """Where perplexity selects: whose. learner: the learner's own. peers: that of the teachers who
    did not write the answer, the mean of their log perplexities."""
    order: Annotated[Literal["lowest", "highest", "middle", "random"], LATER] = "lowest"
    """Where perplexity selects: which of the perplexities is best."""
    keep: Count = 1
    """Pairs per prompt, the best first."""
    pool: Annotated[Share | None, Field(gt=0.0), LATER] = None
    """Share kept of what all prompts chose, the best in that order; null keeps all."""
    max_perplexity: Positive | None = None
    """Where perplexity selects: answers that the learner finds more perplexing are never chosen;
    null sets no bound."""
    on_filter: Literal["drop", "count"] = "drop"
    """What happens to what the filters below catch. drop: it is put aside with its reason. count:
    it is noted and kept."""
    min_chars: Annotated[int, Field(ge=0)] = 1
    """Catch answers of fewer characters."""
    max_chars: Count | None = None
    """Catch answers of more characters; null sets no bound."""
    truncated: bool = True
    """Catch answers that the token limit cut."""
    max_repetition: Share | None = 0.5
    """Catch answers in which more than this share of the 3-word runs occurred before; null sets no
    bound."""
    same_as_rejected: bool = True
    """Catch chosen answers that equal the rejected one."""
    test_sets: Annotated[list[Place], LATER] = Field(default=[])
    """Files or Hub ids of test sets: prompts that occur in them, word for word or nearly, are
    dropped."""
    ngram: Annotated[int, Field(ge=2)] = 8
    """Words in a run, where a prompt is held against a test set."""
    ngram_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """A prompt that holds this share of a test prompt's runs is dropped."""
    near_duplicates: Annotated[float | None, Field(gt=0.0, le=1.0), LATER] = None
    """Prompts whose runs of three words are as alike as this to an earlier prompt's are dropped
    (Jaccard similarity, 0 to 1); null keeps them."""

    @property
    def excludes(self) -> bool:
        """Whether prompts are dropped, and not only candidates."""
        return bool(self.test_sets) or self.near_duplicates is not None

    def identity(self) -> dict[str, Any]:
        """How test sets are read counts where there are any."""
        values = super().identity()
        if not self.test_sets:
            del values["ngram"], values["ngram_share"]
        return values


class Mixture(Section):
    """Layers of agents; each layer reads the answers of the one before, the last one aggregates."""

    layers: Annotated[list[Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    """Names of agents, layer by layer: proposers first, the aggregator last. Any number of layers;
    an agent may stand in several, and one that stands twice in a layer answers twice."""
    insert: Literal["system", "user"] = "system"
    """Where the answers of the layer before stand. system: in a system message, after one that is
    there. user: before the first turn, for models that know no system message."""
    prompt: str = "aggregate"
    """What the aggregator is told: a text of the package's own, or a file in which $answers stands
    for the answers."""
    keep: Literal["aggregate", "best", "random", "all"] = "aggregate"
    """Whose answers are learned. aggregate: those of the last layer. Of the first layer's: the best
    by the judge, one at random, or all."""
    turns: Literal["all", "last"] = "all"
    """Of a conversation. all: a row for each turn. last: one for the last turn."""
    sampling: Sampling = Sampling(temperature=0.7, top_p=1, top_k=0, max_new_tokens=2048)
    """How all of the mixture's agents write."""

    @model_validator(mode="after")
    def _ends_in_one(self) -> Mixture:
        if self.keep == "aggregate" and len(self.layers[-1]) != 1:
            raise ValueError("the last layer is one agent, the aggregator, to keep its answers")
        return self

    def identity(self) -> dict[str, Any]:
        """A prompt counts by its text."""
        return super().identity() | {"prompt": digest(prompts.read(self.prompt))}


class Framing(Section):
    """What leads one model to good and to bad answers: names of the package's texts, or files."""

    positive: str = "good"
    """What leads to good answers: a text of the package's own, or a file."""
    negative: str = "bad"
    """What leads to bad answers, likewise."""
    insert: Literal["system", "user"] = "system"
    """Where it stands. system: in a system message. user: before the first turn."""

    def identity(self) -> dict[str, Any]:
        """A text counts by what it says."""
        sides = {side: getattr(self, side) for side in ("positive", "negative")}
        return super().identity() | {k: digest(prompts.read(v)) for k, v in sides.items()}
