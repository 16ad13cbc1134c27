"""Comparison of a study's variants: every number of its table.

All comparisons are of the same held-out prompts. Scores are paired prompt by prompt and averaged to
one difference for each seed; seeds are the independent observations that intervals and tests are
over. With one seed there is an interval over its prompts and no test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from macpo_data import stats
from macpo_data.evaluation import draws
from macpo_data.evaluation.gap import Gap, pooled
from macpo_data.evaluation.measures import PER_ANSWER as MEASURES
from macpo_data.evaluation.results import Evaluation
from macpo_data.schema import EVALUATION
from macpo_data.stats import Estimate, Recovered
from macpo_run.sweep import budget
from macpo_run.sweep.budget import WORD, Budget
from macpo_run.sweep.provenance import Provenance
from macpo_run.sweep.study import Primary

RESULTS = {"variant": pl.String(), "seed": pl.Int64(), **EVALUATION}
SCORES = {
    "variant": pl.String(),
    "agent": pl.String(),
    "round": pl.Int64(),
    "seed": pl.Int64(),
    "prompt_id": pl.String(),
    "score": pl.Float64(),  # the mean over the answers to this prompt
    "whole": pl.Boolean(),  # whether this variant came to its end with this seed
}
# Not the baselines: the bare bases and negative twins.
MADE = (pl.col("behavior") == "positive") & pl.col("round").is_not_null()
TESTED_SEEDS = 3  # the fewest over which one of many comparisons is tested


@dataclass(frozen=True)
class Measured:
    """One variant with one seed, as far as it came."""

    variant: str
    seed: int
    evaluation: Evaluation | None
    problem: str | None = None  # why it did not come to its end
    # Measure: what it depends on besides the answers that are measured.
    yardsticks: Mapping[str, str] = field(default_factory=dict)
    gaps: Mapping[str, Gap] = field(default_factory=dict)  # by measure, where there is a ceiling
    budgets: Mapping[str, Budget] = field(default_factory=dict)  # by agent, where it ended
    teachers: str = ""  # what decides the teachers of round 0, as a digest


@dataclass(frozen=True)
class Contrast:
    """One variant's lead over another in the last round of each."""

    difference: Estimate
    seeds: int  # with which both came to their end
    p: float | None  # two-sided, of a paired t-test over seeds; None where there is none


@dataclass(frozen=True)
class Row:
    """One agent of one variant in the table. The last round is that of seeds that were finished."""

    variant: str
    agent: str
    rounds: dict[int, Estimate]
    last: Estimate  # in the last round
    words: float | None  # mean length of the last round's answers
    cut: float | None  # share of them that the token limit cut
    budget: Budget | None  # mean over seeds
    change: Estimate  # from the first round to the last
    ahead: Contrast | None  # of the first variant, in the last round; None for that one itself
    adjusted: float | None  # its p after Holm's correction; None where it is not corrected
    is_primary: bool  # whether `ahead` is the primary contrast, either way round
    recovered: Recovered | None  # of the gap, in the last round; None where there is no ceiling
    problems: list[str]


class Standings:
    """What was measured of a study."""

    def __init__(
        self,
        measured: Sequence[Measured],
        agents: Sequence[str],
        primary: Primary | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        """Take it in the study's order: seed by seed, variant by variant."""
        self.measured = measured
        self.agents = list(agents)
        self.primary = primary
        self.provenance = provenance
        self.variants = list(dict.fromkeys(m.variant for m in measured))
        self.seeds = list(dict.fromkeys(m.seed for m in measured))

    @cached_property
    def results(self) -> pl.DataFrame:
        """One row per variant, seed, policy and measure, as RESULTS."""
        tables = [
            m.evaluation.table.with_columns(
                variant=pl.lit(m.variant), seed=pl.lit(m.seed, pl.Int64)
            )
            for m in self.measured
            if m.evaluation
        ]
        return pl.concat([pl.DataFrame(schema=RESULTS), *(t.select(*RESULTS) for t in tables)])

    @cached_property
    def measure(self) -> str | None:
        """What is compared; None where nothing was measured."""
        measures = set(self.results["measure"])
        return next((m for m in MEASURES if m in measures), None)

    @property
    def is_fair(self) -> bool:
        """Whether the variants were measured alike, each seed for itself."""
        of = self.measure or ""
        yardsticks = {(m.seed, m.yardsticks[of]) for m in self.measured if of in m.yardsticks}
        return len(yardsticks) == len({seed for seed, _ in yardsticks})

    @property
    def answers(self) -> str:
        """How the answers were sampled; where the variants differ in it, each with its names."""
        names: dict[str, dict[str, None]] = {}
        for m in self.measured:
            if m.evaluation:
                names.setdefault(draws.described(m.evaluation.sampling), {})[m.variant] = None
        if len(names) < 2:
            return "".join(names)
        return "; ".join(f"{how} ({', '.join(who)})" for how, who in names.items())

    @property
    def interval(self) -> str:
        """What the intervals are."""
        if len(self.seeds) > 1:
            return f"95 % t-interval between {len(self.seeds)} seeds"
        return "95 % bootstrap interval over the prompts of one seed"

    @cached_property
    def rows(self) -> list[Row]:
        """The table: agent by agent, variant by variant."""
        rows = (self._row(v, agent) for agent in self.agents for v in self.variants)
        return [row for row in rows if row.rounds or row.problems]

    @cached_property
    def primary_contrast(self) -> Contrast | None:
        """The primary contrast, of the first agent; None where the study names none."""
        if self.primary is None:
            return None
        return self._contrast(self.primary.first, self.primary.second, self.agents[0], 2)

    @cached_property
    def contrasts(self) -> dict[tuple[str, str], Contrast]:
        """The lead over the first variant, by variant and agent."""
        first, *others = self.variants
        fewest = {True: 2, False: TESTED_SEEDS}
        return {
            (variant, agent): self._contrast(
                variant, first, agent, fewest[self._is_primary(variant, agent)]
            )
            for agent in self.agents
            for variant in others
        }

    @cached_property
    def adjusted(self) -> dict[tuple[str, str], float]:
        """Of `contrasts`, without the primary one, p after Holm's correction for their number.

        One that could not be tested counts with p = 1, so that a variant which fails makes no other
        one significant. Empty with fewer seeds than TESTED_SEEDS.
        """
        if len(self.seeds) < TESTED_SEEDS:
            return {}
        family = {k: c for k, c in self.contrasts.items() if not self._is_primary(*k)}
        p_values = [1.0 if contrast.p is None else contrast.p for contrast in family.values()]
        return dict(zip(family, stats.holm(p_values), strict=True))

    def _is_primary(self, variant: str, agent: str) -> bool:
        """Whether a variant's lead over the first one is the primary contrast."""
        if self.primary is None or agent != self.agents[0]:
            return False
        return {self.primary.first, self.primary.second} == {variant, self.variants[0]}

    @property
    def floors(self) -> dict[str, list[str]]:
        """The floors of the gaps, each with the variants that have it with some seed."""
        names: dict[str, dict[str, None]] = {}
        for variant in self.variants:
            for gap in self._gaps(variant):
                names.setdefault(str(gap.floor), {})[variant] = None
        return {floor: [*of] for floor, of in names.items()}

    @cached_property
    def _scores(self) -> pl.DataFrame:
        """The score of every held-out prompt, as SCORES."""
        frames = [self._scores_of(m, m.evaluation) for m in self.measured if m.evaluation]
        return pl.concat([pl.DataFrame(schema=SCORES), *frames])

    def _scores_of(self, m: Measured, evaluation: Evaluation) -> pl.DataFrame:
        if self.measure is None:
            return pl.DataFrame(schema=SCORES)
        rows = draws.by_prompt(getattr(evaluation, MEASURES[self.measure]), self.measure)
        rows = rows.filter(MADE).drop_nulls(self.measure).rename({self.measure: "score"})
        seed, whole = pl.lit(m.seed, pl.Int64), pl.lit(m.problem is None)
        rows = rows.with_columns(variant=pl.lit(m.variant), seed=seed, whole=whole)
        return rows.select(*SCORES).sort("round", maintain_order=True)

    def _estimate(self, rows: pl.DataFrame, column: str) -> Estimate:
        """The mean of a column of prompts, with an interval over seeds, or prompts of one seed."""
        rows = rows.drop_nulls(column)
        if len(self.seeds) == 1:
            return stats.mean(rows[column].to_numpy())
        return stats.between(_by_seed(rows, column).to_numpy())

    def _ends(self, variant: str, agent: str) -> pl.DataFrame:
        """What each prompt scored in the first and last round of the seeds that were finished.

        A row for each seed and prompt; no score where a prompt lacks one in that round.
        """
        own = self._scores.filter(pl.col("whole"), variant=variant, agent=agent)
        round_, score = pl.col("round"), pl.col("score")
        own = own.with_columns(begin=round_.min().over("seed"), end=round_.max().over("seed"))
        return own.group_by("seed", "prompt_id", maintain_order=True).agg(
            pl.col("begin", "end").first(),
            first=score.filter(round_ == pl.col("begin")).first(),
            last=score.filter(round_ == pl.col("end")).first(),
        )

    def _contrast(self, first: str, second: str, agent: str, fewest: int) -> Contrast:
        """One variant's lead over another, on the prompts that both have a score for.

        It is tested where so many seeds have both.
        """
        other = self._ends(second, agent)
        pairs = self._ends(first, agent).join(
            other, on=["seed", "prompt_id"], suffix="_other", maintain_order="left"
        )
        pairs = pairs.with_columns(ahead=pl.col("last") - pl.col("last_other")).drop_nulls("ahead")
        seeds = _by_seed(pairs, "ahead").to_numpy()
        p = stats.paired_p(seeds) if len(seeds) >= fewest else None
        return Contrast(self._estimate(pairs, "ahead"), len(seeds), p)

    def _row(self, variant: str, agent: str) -> Row:
        own = self._scores.filter(variant=variant, agent=agent).sort("round", maintain_order=True)
        ends = self._ends(variant, agent)
        moved = ends.filter(pl.col("begin") < pl.col("end"))
        texts = self._last_answers(variant, agent)
        key = variant, agent
        return Row(
            variant,
            agent,
            {
                int(str(round_)): self._estimate(rows, "score")
                for (round_,), rows in own.group_by("round", maintain_order=True)
            },
            self._estimate(ends, "last"),
            _number(_by_seed(texts, "words").mean()),
            _number(_by_seed(texts, "cut").mean()),
            budget.mean([m.budgets[agent] for m in self._whole(variant) if agent in m.budgets]),
            self._estimate(moved.with_columns(gained=pl.col("last") - pl.col("first")), "gained"),
            self.contrasts.get(key),
            self.adjusted.get(key),
            self._is_primary(*key),
            pooled([gap for gap in self._gaps(variant) if gap.ceiling.agent == agent]),
            list(dict.fromkeys(
                f"seed {m.seed}: {m.problem}"
                for m in self.measured if m.variant == variant and m.problem
            )),
        )  # fmt: skip

    def _last_answers(self, variant: str, agent: str) -> pl.DataFrame:
        """The answers of the last round: seed, words, cut."""
        frames = [
            m.evaluation.responses.filter(MADE, agent=agent)
            .filter(pl.col("round") == pl.col("round").max())
            .select(
                seed=pl.lit(m.seed, pl.Int64),
                words=pl.col("response").fill_null("").str.count_matches(WORD).cast(pl.Int64),
                cut=pl.col("finish_reason") == "length",
            )
            for m in self._whole(variant)
            if m.evaluation
        ]
        schema = {"seed": pl.Int64(), "words": pl.Int64(), "cut": pl.Boolean()}
        return pl.concat([pl.DataFrame(schema=schema), *frames])

    def _whole(self, variant: str) -> list[Measured]:
        """The seeds of a variant that came to their end."""
        return [m for m in self.measured if m.variant == variant and m.problem is None]

    def _gaps(self, variant: str) -> list[Gap]:
        """The gap of each seed that came to its end."""
        whole = [(m, m.gaps.get(self.measure or "")) for m in self._whole(variant)]
        return [self._from_the_best(m, gap) for m, gap in whole if gap]

    def _from_the_best(self, of: Measured, own: Gap) -> Gap:
        """A gap with the best teacher as its floor that any variant with the same teachers trained.

        Some methods train the labelling teacher alone, which is no floor to compare them by.
        """
        alike = [
            gap
            for m in self.measured
            if (m.seed, m.teachers, m.yardsticks) == (of.seed, of.teachers, of.yardsticks)
            and (gap := m.gaps.get(own.measure))
        ]
        best = max([own, *alike], key=lambda gap: gap.mean(gap.floor))
        return own if best is own else own.above(best)


def _by_seed(rows: pl.DataFrame, column: str) -> pl.Series:
    """The mean of a column for each seed."""
    return rows.group_by("seed", maintain_order=True).agg(pl.col(column).mean())[column]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, float) else None


def known_rounds(standings: Standings, most: int | None = None) -> list[int]:
    """The rounds that were measured; at most so many, evenly spread from the first to the last."""
    rounds = sorted({r for row in standings.rows for r in row.rounds})
    return rounds if most is None else stats.evenly(rounds, most)
