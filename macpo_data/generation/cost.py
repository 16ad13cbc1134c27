"""What a step asks of its models, before anything is spent: calls, tokens, money.

Estimates: every filter lets everything pass, and an answer is as long as the source's own, or half
of what the limit allows. The limit itself gives the upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.generation import ranking
from macpo_data.models.base import WORLD, Base, is_folder
from macpo_data.plan import Plan
from macpo_data.prompts import read
from macpo_data.recipe import Endpoint, Mixture, Recipe, Sampling
from macpo_data.schema import Part
from macpo_data.sources.files import is_local
from macpo_data.sources.parts import read_parts
from macpo_data.sources.places import PARTS, all_paths
from macpo_data.store.store import Store

CHARS_PER_TOKEN = 4.0
UNKNOWN_CHARS = 800  # of a prompt, where the data is not on this machine yet
UNKNOWN_ROWS = 60_000
UNKNOWN_TURNS = {"ultrachat": 3}  # of the user, likewise; of other sources one
SAMPLE = 200  # prompts whose tokens are counted


@dataclass(frozen=True)
class Sizes:
    """How much there is to read and to write."""

    prompts: Mapping[Part, int]
    turns: float  # of the user, in a prompt of d1
    prompt: float  # tokens
    answer: float | None  # tokens of the source's own; None where it has none
    note: str  # where these figures come from

    def written(self, sampling: Sampling) -> float:
        """Tokens of a typical answer."""
        return min(self.answer or sampling.max_new_tokens / 2, sampling.max_new_tokens)


@dataclass(frozen=True)
class Ask:
    """Calls of one kind to one agent."""

    what: str
    agent: str
    prompts: int
    calls: float  # for each prompt
    tokens_in: float  # of a call
    tokens_out: float  # of a call, typically
    most_out: float  # of a call, at most

    def money(self, endpoint: Endpoint | None, out: float) -> float | None:
        """What all of it costs; None without prices."""
        calls = self.prompts * self.calls
        return None if endpoint is None else endpoint.cost(calls * self.tokens_in, calls * out)


def writing(
    what: str,
    agents: list[str],
    prompts: int,
    calls: float,
    told: float,
    out: Sampling,
    sizes: Sizes,
) -> list[Ask]:
    """What these agents write, each to every prompt."""
    written = sizes.written(out)
    return [Ask(what, a, prompts, calls, told, written, out.max_new_tokens) for a in agents]


def mixing(mixture: Mixture, prompts: int, turns: float, sizes: Sizes) -> list[Ask]:
    """What every agent of every layer writes; each layer reads what the one before it wrote."""
    found, told = [], sizes.prompt
    for layer, agents in enumerate(mixture.layers):
        what = f"layer {layer + 1}"
        found += writing(what, agents, prompts, turns, told, mixture.sampling, sizes)
        heard = len(agents) * sizes.written(mixture.sampling)
        told = sizes.prompt + len(read(mixture.prompt)) / CHARS_PER_TOKEN + heard
    return found


def scoring(agent: str, prompts: int, answers: float, recipe: Recipe, sizes: Sizes) -> Ask:
    """The reading of answers under a policy, which writes nothing."""
    told = sizes.prompt + sizes.written(recipe.sampling)
    return Ask("score", agent, prompts, answers, told, 0.0, 0.0)


def judging(
    recipe: Recipe,
    sizes: Sizes,
    part: Part,
    n: int,
    wrote: Sampling | None = None,
    turns: float = 1.0,
) -> list[Ask]:
    """What the recipe's judge is asked about n answers to each turn of a part's prompts.

    `wrote` is how the answers were sampled, where it is not the recipe's own sampling.
    """
    judge = recipe.judge
    if judge is None or judge.kind in ("gold", "reward"):
        return []
    if judge.kind == "likelihood":
        return [scoring(str(judge.agent), sizes.prompts[part], n * turns, recipe, sizes)]
    met = turns * {"all": n * (n - 1) / 2, "first_vs_rest": n - 1}.get(
        judge.pairs, ranking.swiss_rounds(n) * (n // 2)
    )
    answer = sizes.written(wrote or recipe.sampling)
    out, most = judge.sampling.max_new_tokens / 2, judge.sampling.max_new_tokens
    who, prompts = str(judge.agent), sizes.prompts[part]

    def ask(
        what: str, agent: str, calls: float, prompt: str, more: float = 0.0, shown: int = 2
    ) -> Ask:
        told = len(read(prompt)) / CHARS_PER_TOKEN + sizes.prompt + shown * answer + more
        return Ask(f"judge: {what}", agent, prompts, calls, told, out, most)

    if judge.kind == "points":
        calls = n * turns * judge.sampling.n
        return [ask("points", who, calls, judge.prompts.points, shown=1)]
    if judge.kind == "llm":
        return [ask("verdict", who, 2 * met, judge.prompts.verdict)]
    criteria = [ask("criteria", who, met, judge.prompts.criteria)] if judge.criteria else []
    reviews = [ask("review", each, 2 * met, judge.prompts.critique) for each in judge.proposers]
    weighed = len(judge.proposers) * out
    return [*criteria, *reviews, ask("verdict", who, 2 * met, judge.prompts.weigh, weighed)]


def measure(plan: Plan, store: Store) -> Sizes:
    """Count and sample the prompts where they are on this machine; never asks the network."""
    recipe = plan.recipe
    parts: Any = None
    if store.is_done(plan.prompts_name):
        parts = {p: store.read(plan.prompts_name, f"{p}.parquet") for p in PARTS}
    elif all(map(is_local, all_paths(recipe.data))):
        parts, _ = read_parts(recipe.data, recipe.seed)
    if parts is None:
        tokens = UNKNOWN_CHARS / CHARS_PER_TOKEN
        turns = UNKNOWN_TURNS.get(recipe.data.source, 1)
        return Sizes(
            {p: _count(recipe, p) for p in PARTS},
            float(turns),
            tokens,
            None,
            f"the data is not here yet: prompts are taken to have {tokens:.0f} tokens and {turns} "
            f"of the user's turns, and a part without a count {UNKNOWN_ROWS:,} rows",
        )
    some = [row for p in ("d1", "d2") for row in parts[p].head(SAMPLE).iter_rows(named=True)]
    count, how = _counter(recipe)
    asked = [sum(count(m["content"]) for m in row["prompt"]) for row in some]
    answered = [count(row["chosen"]) for row in some if row["chosen"]]
    is_user = pl.element().struct.field("role") == "user"
    turns = parts["d1"].select(pl.col("prompt").list.eval(is_user).list.sum().mean()).item()
    return Sizes(
        {p: len(frame) for p, frame in parts.items()},
        float(turns or 1.0),
        sum(asked) / len(asked),
        sum(answered) / len(answered) if answered else None,
        f"{len(some)} prompts sampled, {how}",
    )


def _count(recipe: Recipe, part: Part) -> int:
    spec, limit = getattr(recipe.data, part), recipe.data.limit
    count = (spec.count or UNKNOWN_ROWS) + (spec.more.count if spec.more else 0)
    return min(count, limit or count)


def _counter(recipe: Recipe) -> tuple[Callable[[str], float], str]:
    """How to count tokens: with the student's tokenizer if it is here, else by characters."""
    from huggingface_hub import try_to_load_from_cache
    from tokenizers import Tokenizer

    base = recipe.agents[recipe.students[0]].base
    file = Path(Base(base, None).source) / "tokenizer.json"
    on_hub = not base.startswith(WORLD) and not is_folder(base)
    if on_hub and (cached := try_to_load_from_cache(base, "tokenizer.json")):
        file = Path(str(cached))
    if not file.is_file():
        return lambda text: len(text) / CHARS_PER_TOKEN, f"{CHARS_PER_TOKEN:.0f} characters a token"
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: float(len(tokenizer.encode(text).ids)), f"tokens of {base}"
