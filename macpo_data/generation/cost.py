"""Cost estimate of a step before it runs: model calls, tokens, money, and how much it writes.

Its method's `build` runs on a context that has no models: it answers with words of the usual length
and counts what it is asked. Estimates: every filter lets everything pass, and an answer is as long
as the source's own, or half of what the limit allows. The limit itself gives the upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from macpo_data.bases.named import folder_of, is_local_base
from macpo_data.errors import ModelError
from macpo_data.generation.context import Context, RoundData
from macpo_data.plan import Plan, Policy, Step
from macpo_data.recipe.agents import Endpoint
from macpo_data.recipe.data import Data, ReleaseData
from macpo_data.recipe.evaluation import RewardModel
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import digest
from macpo_data.schema import PROMPTS, SAMPLES, Message, Part, check, empty, prompt_id
from macpo_data.sources.files import is_local
from macpo_data.sources.parts import read_parts
from macpo_data.sources.places import PARTS, all_paths
from macpo_data.store.store import Store

CHARS_PER_TOKEN = 4.0
UNKNOWN_CHARS = 800  # of a prompt, where the data is not on this machine yet
UNKNOWN_ROWS = 60_000  # of a part without a count, likewise
UNKNOWN_RELEASED = 5_000  # of a part of MACPO's release, likewise
UNKNOWN_TURNS = {"ultrachat": 3}  # of the user, likewise; of other sources one
GOLD = "gold"  # the world's judge, who is no model
SIDES = ("chosen", "rejected")
SAMPLE = 64  # prompts of a part that `build` is run on

Build = Callable[[Step, Context], RoundData]


@dataclass(frozen=True)
class Sizes:
    """How much there is to read and to write."""

    prompts: Mapping[Part, int]
    sample: Mapping[Part, pl.DataFrame]  # some of each part, as PROMPTS
    chars_per_token: float
    answer: float | None  # tokens of the source's own; None where it has none
    note: str  # where these figures come from

    def written(self, sampling: Sampling) -> float:
        """Tokens of a typical answer."""
        return min(self.answer or sampling.max_new_tokens / 2, sampling.max_new_tokens)


# What a call is for: to write, to read what was written, or to compare or mark it.
Kind = Literal["write", "score", "judge"]


@dataclass(frozen=True)
class Ask:
    """Calls of one kind to one agent."""

    kind: Kind
    what: str  # for a person to read
    agent: str
    prompts: int
    calls: float  # for each prompt
    tokens_in: float  # of a call
    tokens_out: float  # of a call, typically
    most_out: float  # of a call, at most
    here: bool = True  # a model on this machine answers, and no server

    def money(self, endpoint: Endpoint | None, out: float) -> float | None:
        """What all of it costs; None without prices."""
        calls = self.prompts * self.calls
        return None if endpoint is None else endpoint.cost(calls * self.tokens_in, calls * out)


@dataclass(frozen=True)
class Texts:
    """A dataset, as far as its size is concerned; lengths are means, in tokens."""

    rows: float
    prompt: float
    chosen: float
    rejected: float

    @classmethod
    def of(cls, pairs: pl.DataFrame, chars_per_token: float, times: float = 1.0) -> Texts:
        """Of rows with prompt, chosen and rejected, each standing for `times` of its kind."""
        sides = [pl.col(side).str.len_chars() for side in ("chosen", "rejected")]
        means = pairs.select(_prompt_chars(), *sides).mean().row(0)
        return cls(len(pairs) * times, *(float(chars or 0.0) / chars_per_token for chars in means))


@dataclass(frozen=True)
class Estimate:
    """What a gen step asks for, and what it writes."""

    asks: list[Ask]
    scorers: dict[str, tuple[RewardModel, Texts]]  # reward models by name, and what each reads
    texts: Texts


def estimate(
    plan: Plan, store: Store, sizes: Sizes, steps: Mapping[Step, Build]
) -> dict[Step, Estimate]:
    """What each of some gen steps takes; a sample set that several read is counted once.

    Args:
        plan: of the run.
        store: of the run, whose finished sample sets are not counted.
        sizes: of the data.
        steps: each with the rule that builds it, in the plan's order.
    """
    written: set[str] = set()
    estimates = {}
    for step, build in steps.items():
        context = CountingContext(plan, store, sizes, written)
        pairs = build(step, context).pairs
        texts = Texts.of(pairs, sizes.chars_per_token, context.times)
        estimates[step] = Estimate(context.asks, context.scorers, texts)
    return estimates


def count(plan: Plan, store: Store, sizes: Sizes, steps: Mapping[Step, Build]) -> list[list[Ask]]:
    """What each of some gen steps asks its models, as `estimate` has it."""
    return [each.asks for each in estimate(plan, store, sizes, steps).values()]


class CountingContext(Context):
    """A context without models: its answers are placeholders, and it counts the requests."""

    def __init__(self, plan: Plan, store: Store, sizes: Sizes, written: set[str]) -> None:
        """`written` are names of sample sets that are counted already; it grows."""
        super().__init__(_let_everything_pass(plan.recipe))
        self._plan, self._store, self._sizes = plan, store, sizes
        self._written = written
        self._part: Part = "d2"  # whose prompts are answered
        self._asks: dict[tuple[str, str], Ask] = {}
        self.scorers: dict[str, tuple[RewardModel, Texts]] = {}

    @property
    def times(self) -> float:
        """How many prompts each of the sample stands for."""
        return self._sizes.prompts[self._part] / (len(self._sizes.sample[self._part]) or 1)

    @property
    def asks(self) -> list[Ask]:
        """What it was asked so far."""
        return list(self._asks.values())

    def prompts(self, part: Part) -> pl.DataFrame:
        """A sample of them."""
        self._part = part
        return self._sizes.sample[part]

    def barred(self, part: Part, turns: pl.DataFrame | None = None) -> pl.DataFrame:
        """None."""
        return pl.DataFrame(schema={"prompt_id": pl.String(), "reason": pl.String()})

    def generate(
        self, policies: Sequence[Policy], part: Part, n: int = 1, draw: str = ""
    ) -> pl.DataFrame:
        """Answers of the usual length, all different."""
        prompts, sampling = self.prompts(part), self._plan.sampling(part)
        sets = []
        for policy in policies:
            for i in range(n):
                name = self._plan.sample_name(policy, part, f"{draw}{i}")
                if name not in self._written and not self._store.is_done(name):
                    self._count(f"write {part}", policy, prompts, sampling)
                self._written.add(name)
                sets.append(self._answers(policy, prompts, sampling, i, f"{policy} {draw}{i}"))
        frame = pl.concat(sets) if sets else empty(SAMPLES)
        order = prompts.select("prompt_id")
        return order.join(frame, on="prompt_id", how="left", maintain_order="left_right")

    def ask(
        self,
        batches: Sequence[tuple[Policy, pl.DataFrame]],
        sampling: Sampling,
        what: str,
        draw: int = 0,
    ) -> list[pl.DataFrame]:
        """Answers of the usual length, that hold any verdict and any marks."""
        answers = []
        for policy, rows in batches:
            self._count(what, policy, rows.unique("prompt_id"), sampling)
            answers.append(self._answers(policy, rows, sampling, draw, f"{policy} {what} {draw}"))
        return answers

    def score(self, samples: pl.DataFrame, under: Policy) -> pl.DataFrame:
        """Scores that differ from row to row and mean nothing."""
        rows = samples
        if "prompt" not in rows.columns:
            prompts = self._sizes.sample[self._part].select("prompt_id", "prompt")
            rows = samples.join(prompts, on="prompt_id", how="left", maintain_order="left")
        self._count("score", under, rows, None)
        perplexity = pl.int_range(pl.len()).hash(self.recipe.seed) % 1000 / 1000 + 1.5
        return samples.with_columns(
            sum_logprob=-perplexity.log() * 10,
            num_tokens=pl.lit(9, pl.Int64),
            eot_logprob=-perplexity.log(),
            perplexity=perplexity,
        )

    def rewards(self, rows: pl.DataFrame, model: RewardModel) -> pl.Series:
        """Likewise."""
        answers = rows.select("prompt", chosen="response", rejected=pl.lit(None, pl.String))
        read = Texts.of(answers, self._sizes.chars_per_token, self.times)
        if model.model != GOLD:
            self.scorers[model.model] = model, read
        return rows.select(pl.int_range(pl.len()).hash(1) % 1000 / 1000).to_series()

    def _answers(
        self, policy: Policy, rows: pl.DataFrame, sampling: Sampling, draw: int, who: str
    ) -> pl.DataFrame:
        """SAMPLES: an answer to each row, in its words the row and who gives it."""
        length = int(self._typical(sampling) * self._sizes.chars_per_token)
        texts = []
        for row in rows["prompt_id"]:
            drawn = int(digest([who, row]), 16)
            verdict = f"[[{'AB'[drawn % 2]}]] score: {drawn % 6}"
            texts.append(f"{f'{who} {row} '.ljust(length - len(verdict), '.')}{verdict}")
        samples = rows.select("prompt_id").with_columns(
            pl.Series("response", texts, dtype=pl.String),
            finish_reason=pl.lit("stop"),
            repetition=pl.lit(0.0),
            agent=pl.lit(policy.agent),
            policy=pl.lit(self._plan.policy_fingerprint(policy)),
            draw=pl.lit(draw, pl.Int64),
        )
        return check(samples, SAMPLES, "counted answers")

    def _typical(self, sampling: Sampling) -> float:
        """Tokens that are written; a judge's are of no length that the data could tell."""
        if self._judges(sampling):
            return sampling.max_new_tokens / 2
        return self._sizes.written(sampling)

    def _judges(self, sampling: Sampling | None) -> bool:
        return self.recipe.judge is not None and sampling is self.recipe.judge.sampling

    def _is_here(self, policy: Policy, sampling: Sampling | None) -> bool:
        """Whether weights on this machine answer: servers score nothing that has a base."""
        agent = self.recipe.agents[policy.agent]
        if agent.endpoint is None or (sampling is None and agent.base):
            return True
        return policy.round is not None and agent.endpoint.adapters == "local"

    def _count(
        self, what: str, policy: Policy, rows: pl.DataFrame, sampling: Sampling | None
    ) -> None:
        """Note a call for each row; without sampling its response is read, and nothing written."""
        agent = policy.agent
        sample, size = len(self._sizes.sample[self._part]), self._sizes.chars_per_token
        answers = [] if sampling else [pl.col("response").str.len_chars()]
        input_chars = pl.sum_horizontal(_prompt_chars(), *answers)
        out, most = 0.0, 0.0
        if sampling:
            out, most = self._typical(sampling), float(sampling.max_new_tokens)
        kind: Kind = "judge" if self._judges(sampling) else "write" if sampling else "score"
        read = float(rows.select(input_chars.mean()).item() or 0.0) / size
        prompts = self._sizes.prompts[self._part]
        here = self._is_here(policy, sampling)
        ask = Ask(kind, what, agent, prompts, len(rows) / sample, read, out, most, here)
        if before := self._asks.get((what, agent)):
            ask = _added(before, ask)
        self._asks[what, agent] = ask


def _prompt_chars() -> pl.Expr:
    """Of all messages of a prompt together."""
    content = pl.element().struct.field("content").str.len_chars()
    return pl.col("prompt").list.eval(content).list.sum()


def _added(one: Ask, other: Ask) -> Ask:
    """Calls of the same kind to the same agent, together."""
    calls = one.calls + other.calls
    if not calls:
        return one
    read = (one.calls * one.tokens_in + other.calls * other.tokens_in) / calls
    return replace(one, calls=calls, tokens_in=read, here=one.here or other.here)


def _let_everything_pass(recipe: Recipe) -> Recipe:
    """The recipe with filters that drop nothing, and no judge refused."""
    select = recipe.select.model_copy(update={"on_filter": "count", "max_perplexity": None})
    judge = recipe.judge
    if judge and judge.kind == "gold":  # who would find all of these words equally bad
        judge = judge.model_copy(update={"kind": "reward", "reward": RewardModel(model=GOLD)})
    judge = judge and judge.model_copy(update={"max_position_bias": 1.0})
    return recipe.model_copy(update={"select": select, "judge": judge})


def measure(plan: Plan, store: Store) -> Sizes:
    """Count and sample the prompts where they are on this machine; never asks the network."""
    recipe = plan.recipe
    parts: Any = None
    if store.is_done(plan.prompts_name):
        parts = {p: store.read(plan.prompts_name, f"{p}.parquet") for p in PARTS}
    elif all(map(is_local, all_paths(recipe.data))) and not _is_away(recipe.data):
        parts, _ = read_parts(recipe.data, recipe.seed)
    if parts is None:
        return unknown(recipe)
    some = {p: frame.head(SAMPLE) for p, frame in parts.items()}
    rows = [row for p in ("d1", "d2") for row in some[p].iter_rows(named=True)]
    counter, how = _counter(recipe)
    prompt_texts = ["\n".join(m["content"] for m in row["prompt"]) for row in rows]
    answered = [counter(row["chosen"]) for row in rows if row["chosen"]]
    return Sizes(
        {p: len(frame) for p, frame in parts.items()},
        some,
        sum(map(len, prompt_texts)) / (sum(map(counter, prompt_texts)) or 1),
        sum(answered) / len(answered) if answered else None,
        f"{len(rows)} prompts sampled, {how}",
    )


def _is_away(data: Data) -> bool:
    """Whether MACPO's release is not here yet; shipped recipes name where it will be."""
    return isinstance(data, ReleaseData) and not Path(data.path).expanduser().exists()


def unknown(recipe: Recipe) -> Sizes:
    """What is taken to be there where the data is not on this machine yet."""
    turns = UNKNOWN_TURNS.get(recipe.data.source, 1)
    tokens = UNKNOWN_CHARS / CHARS_PER_TOKEN
    sample = made_up(UNKNOWN_CHARS, turns, UNKNOWN_CHARS)
    return Sizes(
        {p: _rows(recipe, p) for p in PARTS},
        dict.fromkeys(PARTS, sample),
        CHARS_PER_TOKEN,
        None,
        f"the data is not here yet: prompts are taken to have {tokens:.0f} tokens and {turns} "
        f"of the user's turns, and a part without a count {_unknown_rows(recipe):,} rows",
    )


def made_up(chars: int, turns: int, answer: int = 0, rows: int = SAMPLE) -> pl.DataFrame:
    """Some PROMPTS, each of so many characters in so many of the user's turns.

    People's own answers to them are of `answer` characters, or just long enough to differ.
    """
    each = chars // turns
    prompts: list[list[Message]] = [
        [{"role": "user", "content": f"{n} {turn} ".ljust(each, ".")} for turn in range(turns)]
        for n in range(rows)
    ]
    ids = [prompt_id(prompt) for prompt in prompts]
    sides = {side: [f"{id_} {side} ".ljust(answer, ".") for id_ in ids] for side in SIDES}
    frame = pl.DataFrame({"prompt_id": ids, "prompt": prompts, **sides, "right": None})
    return check(frame, PROMPTS, "made up prompts")


def _rows(recipe: Recipe, part: Part) -> int:
    spec, limit = getattr(recipe.data, part), recipe.data.limit
    rows = (spec.count or _unknown_rows(recipe)) + (spec.more.count if spec.more else 0)
    return min(rows, limit or rows)


def _unknown_rows(recipe: Recipe) -> int:
    return UNKNOWN_RELEASED if isinstance(recipe.data, ReleaseData) else UNKNOWN_ROWS


def _counter(recipe: Recipe) -> tuple[Callable[[str], float], str]:
    """How to count tokens: with the student's tokenizer if it is here, else by characters."""
    from huggingface_hub import try_to_load_from_cache
    from tokenizers import Tokenizer

    base = recipe.agents[recipe.students[0]].base
    try:
        folder = folder_of(base)
    except ModelError:  # said where bases are looked at
        folder = None
    file = None if folder is None else folder / "tokenizer.json"
    if not is_local_base(base) and (cached := try_to_load_from_cache(base, "tokenizer.json")):
        file = Path(str(cached))
    if file is None or not file.is_file():
        return lambda text: len(text) / CHARS_PER_TOKEN, f"{CHARS_PER_TOKEN:.0f} characters a token"
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: float(len(tokenizer.encode(text).ids)), f"tokens of {base}"
