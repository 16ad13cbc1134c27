"""What a method's `build` works with: prompts, sample sets, scores, pairs; each made once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from macpo_data.engines.choose import pick
from macpo_data.engines.protocol import Voice
from macpo_data.errors import DataError, ModelError, StoreError
from macpo_data.generation import reward_model as reward
from macpo_data.generation import select
from macpo_data.generation.shards import Task, run_tasks
from macpo_data.models.base import ENDPOINTS, Base
from macpo_data.models.worker import Report, Workers
from macpo_data.plan import FORMAT, Plan, Policy
from macpo_data.recipe import Recipe, RewardModel, Sampling, digest
from macpo_data.schema import (
    CANDIDATES,
    DROPPED,
    PAIRS,
    PROMPTS,
    SAMPLES,
    SCORES,
    UNUSABLE,
    Part,
    check,
    empty,
)
from macpo_data.sources import overlap
from macpo_data.sources.files import is_local
from macpo_data.sources.parts import read_parts
from macpo_data.sources.tables import read_table
from macpo_data.store.pins import Lock
from macpo_data.store.store import Shards, Store, write_json, write_parquet

LABELS = "labels"  # for whom noise is drawn, where it is in the student's weak labels
# Written into a sample or score set before its first shard.
BEGUN = "begun.json"
Progress = Callable[[str], AbstractContextManager[Report]]


@dataclass(frozen=True)
class RoundData:
    """What a method's `build` returns: one learner's dataset of one round."""

    pairs: pl.DataFrame
    candidates: pl.DataFrame = field(default_factory=lambda: empty(CANDIDATES))
    dropped: pl.DataFrame = field(default_factory=lambda: empty(DROPPED))
    judged: Judged | None = None  # where a judge was asked
    turns: pl.DataFrame | None = None  # prompt_id, prompt; where candidates answer no given prompt


@dataclass(frozen=True)
class Judged:
    """What a judge said of candidates."""

    judgements: pl.DataFrame  # MEETINGS
    report: dict[str, Any]


class Context:
    """What a method's `build` works with."""

    def __init__(
        self, plan: Plan, store: Store, workers: Workers, progress: Progress, redo: bool = False
    ) -> None:
        """Nothing is read or started yet. `redo` makes damaged parts anew."""
        self.speakers: dict[str, Policy] = {}  # who speaks as a judge; else the agent's bare base
        self.used: dict[str, str] = {}  # content of every sample and score set that was read
        self.plan = plan
        self.recipe: Recipe = plan.recipe
        self.store = store
        self.lock = Lock(store.root)
        self.scored_under: dict[str, Any] = {}  # policy: what its scores depend on
        self._workers = workers
        self._progress = progress
        self._redo = redo
        self._pins: dict[str, str | None] | None = None
        self._opened = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was opened: each step and each evaluation has a context of its own."""
        return round(time.monotonic() - self._opened, 2)

    def prompts(self, part: Part) -> pl.DataFrame:
        """The prompts of a part, as PROMPTS.

        Raises:
            DataError: the source cannot be read or holds too few usable rows.
        """
        name = self.plan.prompts_name
        if self._pins is None:  # once is enough: a local file is hashed to see that it is the same
            self._mend(name)
            self._pins = self.lock.data(self.recipe.data)
        with self.store.lock(name):
            if not self.store.is_done(name):
                parts, unusable = read_parts(self.recipe.data, self.recipe.seed, self._pins)
                folder = self.store.clear(name)
                for each, frame in parts.items():
                    write_parquet(folder / f"{each}.parquet", frame)
                write_parquet(
                    folder / "unusable.parquet", check(unusable, UNUSABLE, "unusable rows")
                )
                reasons = dict(unusable["reason"].value_counts().sort("reason").iter_rows())
                self.store.finish(
                    name,
                    {
                        "kind": "prompts",
                        "format": FORMAT,
                        "data": self.recipe.read("data"),
                        "pins": self._pins,
                        "rows": {each: len(frame) for each, frame in parts.items()},
                        "unusable": reasons,
                    },
                )
        return check(self.store.read(name, f"{part}.parquet"), PROMPTS, name)

    def human_pairs(self, part: Part, noise_for: str | None = None) -> RoundData:
        """The human's answers as pairs; for a learner, a share of them are swapped (noise)."""
        prompts = self.prompts(part)
        if prompts["chosen"].null_count() + prompts["rejected"].null_count():
            raise DataError(
                f"data.{part} needs human answers, chosen and rejected: round 0 trains the "
                f"teachers on them; set data.columns or data.{part}.path"
            )
        sides = _human(prompts, "chosen", "rejected")
        if noise_for:
            # The probe's pairs are anybody's, so that the noise of no one teacher is theirs.
            sides = self._swapped(sides, self.recipe.noise(noise_for), noise_for)
        return self._learned(part, sides)

    def human_answers(self, part: Part) -> RoundData:
        """The human's better answers, for fine-tuning: pairs without a rejected side."""
        return self._learned(part, _human(self.prompts(part), "chosen"))

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
        noise = self.recipe.data.label_noise
        return replace(data, pairs=self._swapped(data.pairs, noise, LABELS))

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
        swapped = self._drawn(wrote["prompt_id"], self.recipe.data.label_noise, LABELS)
        is_bad = pl.int_range(pl.len()) % 2 == 1
        return wrote.filter(is_bad == swapped)

    def _drawn(self, prompt_ids: pl.Series, share: float, whose: str) -> pl.Series:
        """Which prompts' sides are swapped: a share, drawn for each of whom it is for."""
        drawn = [int(digest([self.recipe.seed, "noise", whose, i]), 16) for i in prompt_ids]
        return pl.Series([n < share * 16**8 for n in drawn], dtype=pl.Boolean)

    def _swapped(self, pairs: pl.DataFrame, share: float, whose: str) -> pl.DataFrame:
        """Swap the sides of a share of the pairs."""
        flip = self._drawn(pairs["prompt_id"], share, whose)
        other = {"chosen": "rejected", "rejected": "chosen"}
        sides = {
            name: pl.when(flip).then(name.replace(side, other[side])).otherwise(name)
            for side in other
            for name in pairs.columns
            if name.startswith(side)
        }
        return pairs.with_columns(**sides)

    def generate(
        self, policies: Sequence[Policy], part: Part, n: int = 1, draw: str = ""
    ) -> pl.DataFrame:
        """What each policy writes for a part's prompts, `n` times, as SAMPLES.

        Made once per policy, part and draw, whoever asks; rows stand by prompt, then policy.
        """
        prompts = self.prompts(part)
        wanted = [(policy, i) for policy in policies for i in range(n)]
        names, tasks = [], []
        for policy, i in wanted:
            name = self.plan.sample_name(policy, part, f"{draw}{i}")
            voice = self._voice(policy)
            # Like lengths together, so that batches pad little.
            rows = prompts.select("prompt_id", "prompt").sort(_length("prompt"), "prompt_id")
            task = Task(
                self._shards(name, rows["prompt_id"].to_list()),
                voice,
                rows,
                int(digest([self.recipe.seed, voice.fingerprint, draw, i]), 16),
                self.plan.sampling(part),
                {"agent": policy.agent, "policy": voice.fingerprint, "draw": i},
            )
            names.append(name)
            tasks.append((policy, task))
        self._make(names, tasks, f"writing {part}")
        order = prompts.select("prompt_id")
        written = [check(self._rows(name), SAMPLES, name) for name in names]
        frame = pl.concat(written) if written else empty(SAMPLES)
        return order.join(frame, on="prompt_id", how="left", maintain_order="left_right")

    def ask(
        self,
        asked: Sequence[tuple[Policy, pl.DataFrame]],
        sampling: Sampling,
        what: str,
        draw: int = 0,
    ) -> list[pl.DataFrame]:
        """What policies write to prompts of any kind: those of a judge, a mixture, an evaluation.

        Args:
            asked: each policy with its rows (prompt_id, prompt); rows of one prompt_id, which is
                any name, are asked once.
            sampling: for all of them; its `n` is not read.
            what: a word that names these answers on disk and on screen.
            draw: 0.. for several answers to one prompt.

        Returns:
            For each of `asked` its answers as SAMPLES, in the order of the rows.
        """
        if not all(len(rows) for _, rows in asked):
            some = iter(self.ask([(p, r) for p, r in asked if len(r)], sampling, what, draw))
            return [next(some) if len(rows) else empty(SAMPLES) for _, rows in asked]
        names, tasks = [], []
        settings = {k: v for k, v in sampling.identity().items() if k != "n"}
        for policy, rows in asked:
            voice = self._voice(policy)
            rows = rows.select("prompt_id", "prompt").unique("prompt_id", maintain_order=True)
            rows = rows.sort(_length("prompt"), "prompt_id")
            engine = self.plan.engine_identity(policy)
            made_from = [FORMAT, engine, settings, self.recipe.seed, draw]
            content = digest([*made_from, voice.fingerprint, rows.rows()])
            name = f"answers/{policy}-{what}-{voice.fingerprint}-{content}"
            task = Task(
                self._shards(name, rows["prompt_id"].to_list()),
                voice,
                rows,
                int(digest([self.recipe.seed, voice.fingerprint, what, draw]), 16),
                sampling,
                {"agent": policy.agent, "policy": voice.fingerprint, "draw": draw},
            )
            names.append(name)
            tasks.append((policy, task))
        self._make(names, tasks, what)
        return [
            rows.select("prompt_id").join(
                check(self._rows(name), SAMPLES, name),
                on="prompt_id",
                how="left",
                maintain_order="left",
            )
            for name, (_, rows) in zip(names, asked, strict=True)
        ]

    def score(self, samples: pl.DataFrame, under: Policy) -> pl.DataFrame:
        """Add SCORES under a policy to SAMPLES of D2 or the test prompts, or that bring a `prompt`.

        A response that was not written, or does not fit the model, has no score.
        """
        rows = samples.with_row_index()
        if "prompt" not in rows.columns:
            prompts = pl.concat(
                self.prompts(part).select("prompt_id", "prompt") for part in ("d2", "test")
            )
            rows = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
        rows = rows.filter(pl.col("response").is_not_null() & (pl.col("response") != ""))
        rows = rows.select("index", "prompt_id", "prompt", "response", "finish_reason")
        # All responses to a prompt together, so that it is read once; like lengths together.
        rows = rows.sort(_length("prompt"), "prompt_id", "index")
        if rows.is_empty():
            return samples.with_columns(**{n: pl.lit(None, t) for n, t in SCORES.items()})
        content = digest(rows.drop("prompt").rows())
        voice = self._voice(under)
        if self.recipe.agents[under.agent].base:
            voice = replace(voice, endpoint=None)  # no endpoint scores, its local base does
        content = digest([FORMAT, self.recipe.read("engine"), content])
        name = f"scores/{under}-{voice.fingerprint}-{content}"
        ids = [str(i) for i in rows["index"]]
        task = Task(self._shards(name, ids), voice, rows)
        self._make([name], [(under, task)], f"scoring under {under}")
        scored = self._rows(name)
        self.scored_under[str(under)] = self.store.verify(name).get("scored_under")
        scored = scored.join(rows.select("index", "finish_reason"), on="index", how="left")
        scored = scored.with_columns(perplexity=perplexity()).drop("finish_reason")
        joined = samples.with_row_index().join(
            scored, on="index", how="left", maintain_order="left"
        )
        return joined.drop("index")

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
        key = ["prompt_id", "response", "finish_reason"]
        asked = rows.select(*key, "prompt").drop_nulls("response").unique(key, maintain_order=True)
        asked = asked.sort(_length("prompt"), *key)
        scorer, made_from = reward.find_scorer(self.plan, self.store, self.lock, model)
        ids = [digest(row) for row in asked.select(key).rows()]
        name = f"rewards/{scorer.fingerprint}-{digest([FORMAT, self.recipe.read('engine'), ids])}"
        if not ids:
            return pl.Series([None] * len(rows), dtype=pl.Float64)
        shards = self._shards(name, ids)
        with self.store.lock(name):
            self._mend(name, made_from)
            if not self.store.is_done(name):
                self._begin(name, shards, made_from)
                with self._progress(f"scoring by {model.model}") as report:
                    told = (self.recipe.engine, scorer, asked, shards)
                    if self.recipe.engine.name == "fake":
                        facts = reward.score(report, *told)
                    else:
                        worker = self._workers.get(f"the reward model {scorer.base.id}")
                        facts = worker.call(
                            "macpo_data.generation.reward_model:score", *told, report=report
                        )
                facts |= {"kind": "rewards", "format": FORMAT, "inputs": made_from}
                self.store.finish(name, facts | {"rows": len(asked), **scorer.facts()})
            self.used[name] = str(self.store.content(name))
        scores = asked.select(key).with_columns(self._rows(name)["reward"])
        return rows.select(key).join(scores, on=key, how="left", maintain_order="left")["reward"]

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

    def barred(self, part: Part, turns: pl.DataFrame | None = None) -> pl.DataFrame:
        """The prompts of a part that `select` keeps from being learned: (prompt_id, reason).

        Args:
            part: of the data.
            turns: (prompt_id, prompt) of the turns inside its conversations, in its prompts' place.
                One may be a test prompt; turns of one conversation are alike by nature.

        Raises:
            DataError: a test set cannot be read, or has no column of prompts.
        """
        settings = self.recipe.select
        tests = []
        for path, pin in self.lock.datasets(settings.test_sets).items():
            table = read_table(path, revision=None if is_local(path) else pin, split=None)
            if (found := overlap.texts(table)) is None:
                raise DataError(
                    f"select.test_sets: {path} has no column of prompts "
                    f"({', '.join(table.columns)}); name another file"
                )
            tests.append(found)
        if turns is None:
            return overlap.excluded(self.prompts(part), tests, settings)
        held_out = turns.join(self.prompts("test"), on="prompt_id", how="semi")
        known = held_out.select("prompt_id", reason=pl.lit("prompt_in_test"))
        alike = settings.model_copy(update={"near_duplicates": None})
        barred = overlap.excluded(turns, tests, alike)
        rest = barred.join(known, on="prompt_id", how="anti", maintain_order="left")
        return known.vstack(rest)

    def _shards(self, name: str, ids: list[str]) -> Shards:
        """The shards of a result, as a killed run began them or as the recipe wants them."""
        size = self._begun(name).get("shard_size", self.recipe.engine.shard_size)
        return Shards(self.store.path(name), ids, size)

    def _begun(self, name: str) -> dict[str, Any]:
        """What a result was begun with."""
        try:
            begun: dict[str, Any] = json.loads((self.store.path(name) / BEGUN).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return begun

    def _begin(
        self, name: str, shards: Shards, made_from: dict[str, str], by: str | None = None
    ) -> None:
        """Keep the shards of a killed run, unless what made them changed since.

        Texts may come from several engines; `by` names the one that all scores of a set are of.
        """
        begun = self._begun(name)
        if begun.get("inputs") != made_from or begun.get("scored_by") != by:
            folder = self.store.clear(name)
            kept = {"inputs": made_from, "shard_size": shards.size, "scored_by": by}
            write_json(folder / BEGUN, kept)

    def _voice(self, policy: Policy) -> Voice:
        """The policy's adapter, checked, on its agent's template."""
        maker = self.plan.maker(policy)
        adapter = None
        if maker is not None:
            self.store.verify(self.plan.name(maker))
            adapter = str(self.store.path(self.plan.name(maker)))
        agent = self.recipe.agents[policy.agent]
        fingerprint = self.plan.policy_fingerprint(policy)
        endpoint = agent.endpoint
        if adapter and endpoint and endpoint.adapters == "local":
            endpoint = None  # it speaks for the untrained base; what was trained has weights here
        return Voice(adapter, agent.chat_template, fingerprint, endpoint)

    def _rows(self, name: str) -> pl.DataFrame:
        """All shards of a finished result, after checking their bytes."""
        manifest = self.store.verify(name)
        files = sorted(f for f in manifest["files"] if f.startswith("shards/"))
        return pl.concat(pl.read_parquet(self.store.path(name) / f) for f in files)

    def _mend(self, name: str, made_from: dict[str, str] | None = None) -> None:
        """With --redo, move aside a result that is damaged, or made from what changed since.

        Raises:
            StoreError: it was made from what changed since, and --redo was not said.
        """
        try:
            manifest = self.store.manifest(name)
            if manifest and made_from is not None and manifest["inputs"] != made_from:
                raise StoreError(
                    f"{self.store.path(name)} was made from results that changed since; --redo "
                    "makes it anew"
                )
            if manifest and self._redo:
                self.store.verify(name)
        except StoreError:
            if not self._redo:
                raise
            self.store.aside(name)

    def _make(self, names: list[str], tasks: list[tuple[Policy, Task]], what: str) -> None:
        """Make the results that are not there, base by base, one process for each base."""
        with ExitStack() as locks:
            for name in sorted(set(names)):
                locks.enter_context(self.store.lock(name))
            for name, (policy, _) in zip(names, tasks, strict=True):
                self._mend(name, self._made_from(policy))
            todo: dict[Base, dict[str, tuple[Policy, Task]]] = {}
            for name, (policy, task) in zip(names, tasks, strict=True):
                if not self.store.is_done(name):
                    agent = self.recipe.agents[policy.agent]
                    base = ENDPOINTS if task.voice.endpoint else self.lock.base(agent)
                    todo.setdefault(base, {})[name] = (policy, task)
            # The base that is loaded already goes first.
            for base in sorted(todo, key=lambda b: not self._workers.has(b.id)):
                self._make_on(base, todo[base], what)
            self.used |= {name: str(self.store.content(name)) for name in names}

    def _made_from(self, policy: Policy) -> dict[str, str]:
        """The content of what a policy's sample or score set is made from."""
        maker = self.plan.maker(policy)
        names = [self.plan.prompts_name, *([self.plan.name(maker)] if maker else [])]
        return {name: str(self.store.content(name)) for name in names}

    def _check_template(self, policy: Policy, voice: Voice, facts: dict[str, Any]) -> None:
        """Refuse what was rendered otherwise than the adapter was trained.

        Raises:
            ModelError: the base's own chat template changed since the adapter was trained.
        """
        maker = self.plan.maker(policy)
        trained = maker and (self.store.manifest(self.plan.name(maker)) or {}).get(
            "template_sha256"
        )
        now = facts.get("template_sha256", {}).get(voice.chat_template)
        if trained and now and trained != now:
            raise ModelError(
                f"the chat template of {policy} is another than the one it was trained with; "
                f"train it anew with --redo, or pin agents.{policy.agent}.revision"
            )

    def _make_on(self, base: Base, todo: dict[str, tuple[Policy, Task]], what: str) -> None:
        started = time.monotonic()
        tasks = [task for _, task in todo.values()]
        scorer = None if tasks[0].sampling else self.recipe.score.engine
        by = scorer and f"{scorer} {self.recipe.engine.adapters}"
        for name, (policy, task) in todo.items():
            self._begin(name, task.shards, self._made_from(policy), by)
        writers = list(dict.fromkeys(str(policy) for policy, _ in todo.values()))
        who = ", ".join(writers) if len(writers) < 4 else f"{len(writers)} policies of {base.id}"
        title = what if "under" in what else f"{what}: {who}"
        with self._progress(title) as report:
            if self.recipe.engine.name == "fake" or base == ENDPOINTS:
                facts = run_tasks(report, self.recipe.engine, base, tasks)
            else:
                engine = pick(self.recipe.engine, scorer)
                # vLLM takes the GPU for itself, so a process that runs it runs nothing else.
                own = f" ({engine.name})" if engine.name != "transformers" else ""
                facts = self._workers.get(f"{base.id}{own}").call(
                    "macpo_data.generation.shards:run_tasks", engine, base, tasks, report=report
                )
        seconds = round(time.monotonic() - started, 2)
        if str(facts.get("scoring", "")).startswith("one sequence"):
            self.store.say(f"{title}: {facts['scoring']}")
        own_facts = facts.pop("own", [{}] * len(todo))
        for (name, (policy, task)), own in zip(todo.items(), own_facts, strict=True):
            maker = self.plan.maker(policy)
            self._check_template(policy, task.voice, facts)
            self.store.finish(
                name,
                {
                    "kind": "samples" if task.sampling else "scores",
                    "format": FORMAT,
                    "inputs": self._made_from(policy),
                    "policy": str(policy),
                    "adapter": maker and self.plan.name(maker),
                    "base": endpoint.model if (endpoint := task.voice.endpoint) else base.id,
                    "base_revision": base.revision,
                    "chat_template": task.voice.chat_template,
                    "sampling": task.sampling and task.sampling.model_dump(),
                    "engine_settings": self.recipe.engine.model_dump(),
                    "seed": task.seed,
                    "rows": len(task.rows),
                    "seconds_with_others": seconds,
                    **own,
                    **facts,
                },
            )


def perplexity() -> pl.Expr:
    """Of a response with its end, as SCORES say, from SCORES and finish_reason."""
    ended = (pl.col("finish_reason") == "stop").cast(pl.Int64)
    tokens = pl.when(pl.col("num_tokens") > 0).then(pl.col("num_tokens") + ended)
    logprob = pl.col("sum_logprob") + pl.when(ended == 1).then("eot_logprob").otherwise(0.0)
    value = (-logprob / tokens).exp()
    return pl.when(value.is_finite()).then(value)


def _human(prompts: pl.DataFrame, *sides: str) -> pl.DataFrame:
    """What people answered as PAIRS; a side that is not asked for is empty."""
    human = {"agent": "human", "policy": "human", "finish_reason": "stop"}
    written = {f"{side}_{n}": pl.lit(v) for side in sides for n, v in human.items()}
    pairs = prompts.select("prompt_id", "prompt", *sides).with_columns(**written)
    missing = {n: pl.lit(None, t) for n, t in PAIRS.items() if n not in pairs.columns}
    return pairs.with_columns(**missing)


def _length(column: str) -> pl.Expr:
    """Bytes of a message list, a cheap stand-in for its tokens."""
    return pl.col(column).list.eval(pl.element().struct.field("content").str.len_bytes()).list.sum()
