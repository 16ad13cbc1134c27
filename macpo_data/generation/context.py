"""The interface that a method builds datasets with: prompts, answers, scores, and pairs.

`RunContext` makes them with models, each once, and keeps them on disk; the plan of costs has a
context that only counts what it is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from macpo_data.errors import DataError
from macpo_data.generation import human_pairs, select
from macpo_data.plan import Policy
from macpo_data.recipe.evaluation import RewardModel
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.recipe import Recipe
from macpo_data.schema import CANDIDATES, DROPPED, PAIRS, Part, check, empty


@dataclass(frozen=True)
class Judged:
    """What a judge said of candidates."""

    judgements: pl.DataFrame  # MEETINGS
    report: dict[str, Any]


@dataclass(frozen=True)
class RoundData:
    """What a method's `build` returns: one learner's dataset of one round."""

    pairs: pl.DataFrame
    candidates: pl.DataFrame = field(default_factory=lambda: empty(CANDIDATES))
    dropped: pl.DataFrame = field(default_factory=lambda: empty(DROPPED))
    judged: Judged | None = None  # where a judge was asked
    turns: pl.DataFrame | None = None  # prompt_id, prompt; where candidates answer no given prompt


class Context(ABC):
    """What a method's `build` works with."""

    def __init__(self, recipe: Recipe) -> None:
        """Nothing is read or started yet."""
        self.recipe = recipe
        self.speakers: dict[str, Policy] = {}  # who speaks as a judge; else the agent's bare base

    @abstractmethod
    def prompts(self, part: Part) -> pl.DataFrame:
        """The prompts of a part, as PROMPTS.

        Raises:
            DataError: the source cannot be read or holds too few usable rows.
        """

    @abstractmethod
    def generate(
        self, policies: Sequence[Policy], part: Part, n: int = 1, draw: str = ""
    ) -> pl.DataFrame:
        """What each policy writes for a part's prompts, `n` times, as SAMPLES.

        Made once per policy, part and draw, whoever asks; rows stand by prompt, then policy.
        """

    @abstractmethod
    def ask(
        self,
        batches: Sequence[tuple[Policy, pl.DataFrame]],
        sampling: Sampling,
        what: str,
        draw: int = 0,
    ) -> list[pl.DataFrame]:
        """What policies write to prompts of any kind: those of a judge, a mixture, an evaluation.

        Args:
            batches: each policy with its rows (prompt_id, prompt); rows of one prompt_id, which is
                any name, are asked once.
            sampling: for all of them; its `n` is not read.
            what: a word that names these answers on disk and on screen.
            draw: 0.. for several answers to one prompt.

        Returns:
            For each of `batches` its answers as SAMPLES, in the order of the rows.
        """

    @abstractmethod
    def score(self, samples: pl.DataFrame, under: Policy) -> pl.DataFrame:
        """Add SCORES under a policy to SAMPLES of D2 or the test prompts, or that bring a `prompt`.

        A response that was not written, or does not fit the model, has no score.
        """

    @abstractmethod
    def rewards(self, rows: pl.DataFrame, model: RewardModel) -> pl.Series:
        """How good a reward model finds answers.

        Args:
            rows: prompt_id, prompt, response, finish_reason; equal ones are scored once.
            model: as the recipe describes it.

        Returns:
            Row for row the reward; null for an answer that was not written or does not fit.

        Raises:
            ModelError: it cannot be loaded, is no reward model, or is not trained yet.
        """

    @abstractmethod
    def barred(self, part: Part, turns: pl.DataFrame | None = None) -> pl.DataFrame:
        """The prompts of a part that `select` keeps from being learned: (prompt_id, reason).

        Args:
            part: of the data.
            turns: (prompt_id, prompt) of the turns inside its conversations, in its prompts' place.
                One may be a test prompt; turns of one conversation are alike by nature.

        Raises:
            DataError: a test set cannot be read, or has no column of prompts.
        """

    def score_together(
        self, frames: Sequence[pl.DataFrame], under: Policy
    ) -> Iterator[pl.DataFrame]:
        """`score` for several frames at once: responses to one prompt are read in one pass."""
        scored = self.score(pl.concat(frames), under)
        at = 0
        for frame in frames:
            yield scored[at : at + len(frame)]
            at += len(frame)

    def pair(
        self, candidates: pl.DataFrame, rejected: pl.DataFrame, judged: Judged | None = None
    ) -> RoundData:
        """Pairs of what was selected with the rejected responses."""
        candidates = select.exclude(candidates, self.barred("d2"))
        pairs, dropped = select.pair(self.prompts("d2"), candidates, rejected)
        return RoundData(pairs, candidates, dropped, judged)

    def human_pairs(self, part: Part, noise_for: str | None = None) -> RoundData:
        """The human's answers as pairs; for a learner, a share of them are swapped (noise).

        Raises:
            DataError: a prompt has no human answer.
        """
        prompts = self.prompts(part)
        if prompts["chosen"].null_count() + prompts["rejected"].null_count():
            raise DataError(
                f"data.{part} needs human answers, chosen and rejected: round 0 trains the "
                f"teachers on them; set data.columns or data.{part}.path"
            )
        sides = human_pairs.answers(prompts, "chosen", "rejected")
        if noise_for:
            # The probe's pairs are anybody's, so that the noise of no one teacher is theirs.
            noise = self.recipe.noise(noise_for)
            sides = human_pairs.swapped(sides, noise, noise_for, self.recipe.seed)
        return self._learned(part, sides)

    def human_answers(self, part: Part) -> RoundData:
        """The human's better answers, for fine-tuning: pairs without a rejected side."""
        return self._learned(part, human_pairs.answers(self.prompts(part), "chosen"))

    def _learned(self, part: Part, sides: pl.DataFrame) -> RoundData:
        """What people wrote, without the prompts that `select` keeps from being learned."""
        barred = self.barred(part)
        out = sides.join(barred, on="prompt_id", maintain_order="left")
        dropped = out.select(
            "prompt_id", "reason", agent=pl.lit("human"), response=pl.col("chosen")
        )
        sides = sides.join(barred, on="prompt_id", how="anti", maintain_order="left")
        return RoundData(
            check(sides, PAIRS, "human pairs"), dropped=check(dropped, DROPPED, "dropped rows")
        )

    def weak_labels(self, data: RoundData) -> RoundData:
        """Pairs for the student's round 0, of which `data.label_noise` are swapped."""
        noise, seed = self.recipe.data.label_noise, self.recipe.seed
        return replace(data, pairs=human_pairs.swapped(data.pairs, noise, human_pairs.LABELS, seed))

    def chosen_labels(self, writers: Sequence[Policy]) -> pl.DataFrame:
        """The answers of the student's weak labels that round 0 calls chosen, without its filters.

        Args:
            writers: the labelling teacher, good and, where `data.label_noise` swaps some, bad.

        Returns:
            SAMPLES, one per prompt of D2: the bad one's answer where the label is swapped.
        """
        wrote = self.generate(writers, "d2")  # by prompt, then writer
        if len(writers) == 1:
            return wrote
        noise, seed = self.recipe.data.label_noise, self.recipe.seed
        swapped = human_pairs.drawn(wrote["prompt_id"], noise, human_pairs.LABELS, seed)
        is_bad = pl.int_range(pl.len()) % 2 == 1
        return wrote.filter(is_bad == swapped)
