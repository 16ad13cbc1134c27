"""A method's context with real models: every text and score is made once and stored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from macpo_data.engines.choose import pick
from macpo_data.engines.protocol import Voice
from macpo_data.errors import ModelError
from macpo_data.generation import reward_model as reward
from macpo_data.generation import run_prompts
from macpo_data.generation.context import Context
from macpo_data.generation.results import Item, Results
from macpo_data.generation.shards import Task, perplexity, run_tasks
from macpo_data.models.base import ENDPOINTS, Base
from macpo_data.models.worker import Progress, Workers
from macpo_data.plan import FORMAT, Plan, Policy
from macpo_data.recipe.evaluation import RewardModel
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.section import digest, digest_rows
from macpo_data.schema import PROMPTS, SAMPLES, SCORES, Part, check, empty
from macpo_data.sources import overlap
from macpo_data.store.pins import Lock
from macpo_data.store.store import Manifest, Store


class RunContext(Context):
    """The context of one step, or of one evaluation, of a run."""

    def __init__(
        self, plan: Plan, store: Store, workers: Workers, progress: Progress, redo: bool = False
    ) -> None:
        """Nothing is read or started yet. `redo` makes damaged parts anew."""
        super().__init__(plan.recipe)
        self.plan = plan
        self.store = store
        self.lock = Lock(store.root)
        self.scored_under: dict[str, Any] = {}  # policy: what its scores depend on
        self._results = Results(store, plan.recipe.engine.shard_size, redo)
        self._workers = workers
        self._progress = progress
        self._pins: dict[str, str | None] | None = None
        self._opened = time.monotonic()

    @property
    def used(self) -> dict[str, str]:
        """The content of every sample and score set that was read, by name."""
        return self._results.used

    @property
    def seconds(self) -> float:
        """Since it was opened: each step and each evaluation has a context of its own."""
        return round(time.monotonic() - self._opened, 2)

    def prompts(self, part: Part) -> pl.DataFrame:
        """Read from the run, where they are drawn from their source once."""
        name = self.plan.prompts_name
        if self._pins is None:  # once is enough: a local file is hashed to see that it is the same
            self._results.mend(name)
            self._pins = self.lock.data(self.recipe.data)
        run_prompts.draw(self.plan, self.store, self._pins)
        rows = self.store.read(name, f"{part}.parquet")
        if "right" not in rows.columns:  # drawn before there was this column
            rows = rows.with_columns(right=pl.lit(None, pl.String))
        return check(rows, PROMPTS, name)

    def barred(self, part: Part, turns: pl.DataFrame | None = None) -> pl.DataFrame:
        """By the test sets and the likeness that `select` names."""
        tests = run_prompts.tests(self.lock, self.recipe.select)
        if turns is None:
            return overlap.excluded(self.prompts(part), tests, self.recipe.select)
        return run_prompts.barred_turns(turns, self.prompts("test"), tests, self.recipe.select)

    def generate(
        self, policies: Sequence[Policy], part: Part, n: int = 1, draw: str = ""
    ) -> pl.DataFrame:
        """A sample set for each policy and draw."""
        prompts = self.prompts(part)
        rows = run_prompts.by_length(prompts.select("prompt_id", "prompt"), "prompt_id")
        ids, sampling = rows["prompt_id"].to_list(), self.plan.sampling(part)
        wanted: list[tuple[str, Policy, Task]] = []
        for policy in policies:
            voice = self._voice(policy)
            for i in range(n):
                name = self.plan.sample_name(policy, part, f"{draw}{i}")
                seed = int(digest([self.recipe.seed, voice.fingerprint, draw, i]), 16)
                labels = {"agent": policy.agent, "policy": voice.fingerprint, "draw": i}
                shards = self._results.shards(name, ids)
                wanted.append((name, policy, Task(shards, voice, rows, seed, sampling, labels)))
        written = [check(each, SAMPLES, "samples") for each in self._run(wanted, f"writing {part}")]
        frame = pl.concat(written) if written else empty(SAMPLES)
        order = prompts.select("prompt_id")
        return order.join(frame, on="prompt_id", how="left", maintain_order="left_right")

    def ask(
        self,
        batches: Sequence[tuple[Policy, pl.DataFrame]],
        sampling: Sampling,
        what: str,
        draw: int = 0,
    ) -> list[pl.DataFrame]:
        """An answer set for each, named by its content."""
        if not all(len(rows) for _, rows in batches):
            some = iter(self.ask([(p, r) for p, r in batches if len(r)], sampling, what, draw))
            return [next(some) if len(rows) else empty(SAMPLES) for _, rows in batches]
        wanted = []
        settings = {k: v for k, v in sampling.identity().items() if k != "n"}
        for policy, rows in batches:
            voice = self._voice(policy)
            rows = rows.select("prompt_id", "prompt").unique("prompt_id", maintain_order=True)
            rows = run_prompts.by_length(rows, "prompt_id")
            engine = self.plan.engine_identity(policy)
            made_from = [FORMAT, engine, settings, self.recipe.seed, draw]
            content = digest([*made_from, voice.fingerprint, rows.rows()])
            name = f"answers/{policy}-{what}-{voice.fingerprint}-{content}"
            seed = int(digest([self.recipe.seed, voice.fingerprint, what, draw]), 16)
            labels = {"agent": policy.agent, "policy": voice.fingerprint, "draw": draw}
            shards = self._results.shards(name, rows["prompt_id"].to_list())
            wanted.append((name, policy, Task(shards, voice, rows, seed, sampling, labels)))
        answers = self._run(wanted, what)
        return [
            rows.select("prompt_id").join(
                check(each, SAMPLES, "answers"), on="prompt_id", how="left", maintain_order="left"
            )
            for each, (_, rows) in zip(answers, batches, strict=True)
        ]

    def score(self, samples: pl.DataFrame, under: Policy) -> pl.DataFrame:
        """A score set of all that was written, named by its content."""
        # Only what is scored meets the prompts: joined to all columns, they would be held twice.
        columns = ["index", "prompt_id", "response", "finish_reason"]
        own = ["prompt"] if "prompt" in samples.columns else []
        rows = samples.with_row_index().select(*columns, *own)
        rows = rows.filter(pl.col("response").is_not_null() & (pl.col("response") != ""))
        if not own:
            prompts = pl.concat(
                self.prompts(part).select("prompt_id", "prompt") for part in ("d2", "test")
            )
            prompts = prompts.unique("prompt_id")  # a released prompt may be in both
            rows = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
        rows = rows.select("index", "prompt_id", "prompt", "response", "finish_reason")
        # All responses to a prompt together, so that it is read once.
        rows = run_prompts.by_length(rows, "prompt_id", "index")
        if rows.is_empty():
            return samples.with_columns(**{n: pl.lit(None, t) for n, t in SCORES.items()})
        content = digest_rows(rows.drop("prompt").iter_rows())
        voice = self._voice(under)
        if self.recipe.agents[under.agent].base:
            voice = replace(voice, endpoint=None)  # no endpoint scores, its local base does
        content = digest([FORMAT, self.recipe.read("engine"), content])
        name = f"scores/{under}-{voice.fingerprint}-{content}"
        shards = self._results.shards(name, [str(i) for i in rows["index"]])
        (scored,) = self._run(
            [(name, under, Task(shards, voice, rows))], f"scoring under {under}", scores=True
        )
        self.scored_under[str(under)] = self.store.verify(name).get("scored_under")
        scored = scored.join(rows.select("index", "finish_reason"), on="index", how="left")
        scored = scored.with_columns(perplexity=perplexity()).drop("finish_reason")
        joined = samples.with_row_index().join(
            scored, on="index", how="left", maintain_order="left"
        )
        return joined.drop("index")

    def rewards(self, rows: pl.DataFrame, model: RewardModel) -> pl.Series:
        """A reward set of all that was written, named by its content."""
        key = ["prompt_id", "response", "finish_reason"]
        answers = (
            rows.select(*key, "prompt").drop_nulls("response").unique(key, maintain_order=True)
        )
        answers = run_prompts.by_length(answers, *key)
        scorer, made_from = reward.find_scorer(self.plan, self.store, self.lock, model)
        ids = [digest(row) for row in answers.select(key).rows()]
        name = f"rewards/{scorer.fingerprint}-{digest([FORMAT, self.recipe.read('engine'), ids])}"
        if not ids:
            return pl.Series([None] * len(rows), dtype=pl.Float64)
        shards = self._results.shards(name, ids)

        def make(_: list[int]) -> Iterator[tuple[int, Manifest]]:
            with self._progress(f"scoring by {model.model}") as report:
                work = (self.recipe.engine, scorer, answers, shards)
                if self.recipe.engine.name == "fake":
                    facts = reward.score(report, *work)
                else:
                    facts = self._workers.get(f"the reward model {scorer.base.id}").call(
                        "macpo_data.generation.reward_model:score", *work, report=report
                    )
            facts |= {"kind": "rewards", "format": FORMAT, "rows": len(answers)}
            yield 0, {**facts, **scorer.facts()}

        (scored,) = self._results.once([Item(name, shards, made_from)], make)
        scores = answers.select(key).with_columns(scored["reward"])
        return rows.select(key).join(scores, on=key, how="left", maintain_order="left")["reward"]

    def _voice(self, policy: Policy) -> Voice:
        """The policy's adapter, checked, on its agent's template; a checkpoint is a base itself."""
        maker = self.plan.maker(policy)
        if maker is not None and not self.store.is_thinned(self.plan.name(maker)):
            self.store.verify(self.plan.name(maker))
        is_adapter = maker is not None and not self._is_full(policy)
        adapter = str(self.store.path(self.plan.name(maker))) if maker and is_adapter else None
        agent = self.recipe.agents[policy.agent]
        fingerprint = self.plan.policy_fingerprint(policy)
        endpoint = agent.endpoint
        if maker and endpoint and endpoint.adapters == "local":
            endpoint = None  # it speaks for the untrained base; what was trained has weights here
        return Voice(adapter, agent.chat_template, fingerprint, endpoint)

    def _is_full(self, policy: Policy) -> bool:
        """Whether a policy is a checkpoint of all weights."""
        return policy.round is not None and self.recipe.finetuning(policy.agent) == "full"

    def _base(self, policy: Policy) -> Base:
        """What an engine loads for a policy: its agent's base, or its checkpoint."""
        fake = self.recipe.engine.name == "fake"
        base = self.lock.base(self.recipe.agents[policy.agent])
        maker = self.plan.maker(policy)
        if maker is None or not self._is_full(policy):
            return base
        self.store.verify(self.plan.name(maker))
        if fake:
            return base
        return replace(base, checkpoint=str(self.store.path(self.plan.name(maker))))

    def _run(
        self, wanted: Sequence[tuple[str, Policy, Task]], title: str, scores: bool = False
    ) -> list[pl.DataFrame]:
        """The rows of sample or score sets; what is missing is made, base by base.

        Args:
            wanted: name, policy and task of each.
            title: of the work, for whoever waits.
            scores: whether these are score sets, whose title says under whom.
        """
        settings = self.recipe.score.engine
        by = f"{settings} {self.recipe.engine.adapters}" if scores else None
        items = [
            Item(name, task.shards, self._made_from(policy), by) for name, policy, task in wanted
        ]

        def make(todo: list[int]) -> Iterator[tuple[int, Manifest]]:
            by_base: dict[Base, list[int]] = {}
            for place in todo:
                _, policy, task = wanted[place]
                base = ENDPOINTS if task.voice.endpoint else self._base(policy)
                by_base.setdefault(base, []).append(place)
            # The base that is loaded already goes first.
            for base in sorted(by_base, key=lambda b: not self._workers.has(b.name)):
                some = [wanted[place][1:] for place in by_base[base]]
                manifests = self._run_on(base, some, title, scores)
                yield from zip(by_base[base], manifests, strict=True)

        return self._results.once(items, make)

    def _made_from(self, policy: Policy) -> dict[str, str]:
        """The content of what a policy's sample or score set is made from."""
        maker = self.plan.maker(policy)
        names = [self.plan.prompts_name, *([self.plan.name(maker)] if maker else [])]
        return {name: str(self.store.content(name)) for name in names}

    def _run_on(
        self, base: Base, todo: Sequence[tuple[Policy, Task]], title: str, scores: bool
    ) -> list[Manifest]:
        """Run the tasks of one base model in a worker process, and return the facts of each."""
        started, tasks = time.monotonic(), [task for _, task in todo]
        scorer = self.recipe.score.engine if scores else None
        if not scores:
            writers = list(dict.fromkeys(str(policy) for policy, _ in todo))
            few = len(writers) < 4
            title += f": {', '.join(writers) if few else f'{len(writers)} policies of {base.id}'}"
        with self._progress(title) as report:
            if self.recipe.engine.name == "fake" or base == ENDPOINTS:
                facts = run_tasks(report, self.recipe.engine, base, tasks, self.store.say)
            else:
                engine = pick(self.recipe.engine, scorer)
                # vLLM takes the GPU for itself, so a process that runs it runs nothing else.
                own = engine.name if engine.name != "transformers" else None
                facts = self._workers.get(base.name, own).call(
                    "macpo_data.generation.shards:run_tasks", engine, base, tasks, report=report
                )
        facts |= {"seconds_with_others": round(time.monotonic() - started, 2)}
        if str(facts.get("scoring", "")).startswith("one sequence"):
            self.store.say(f"{title}: {facts['scoring']}")
        own_facts = facts.pop("own", [{}] * len(todo))
        for policy, task in todo:
            self._check_template(policy, task.voice, facts)
        return [
            self._manifest(base, policy, task) | mine | facts
            for (policy, task), mine in zip(todo, own_facts, strict=True)
        ]

    def _manifest(self, base: Base, policy: Policy, task: Task) -> Manifest:
        """What a set's manifest says of who wrote or scored, and how."""
        maker, endpoint = self.plan.maker(policy), task.voice.endpoint
        return {
            "kind": "samples" if task.sampling else "scores",
            "format": FORMAT,
            "policy": str(policy),
            "adapter": maker and self.plan.name(maker),
            "base": endpoint.model if endpoint else base.id,
            "base_revision": base.revision,
            "chat_template": task.voice.chat_template,
            "sampling": task.sampling and task.sampling.model_dump(),
            "engine_settings": self.recipe.engine.model_dump(),
            "seed": task.seed,
            "rows": len(task.rows),
        }

    def _check_template(self, policy: Policy, voice: Voice, facts: dict[str, Any]) -> None:
        """Refuse what was rendered otherwise than the adapter was trained.

        Raises:
            ModelError: the base's own chat template changed since the adapter was trained.
        """
        maker = self.plan.maker(policy)
        manifest = self.store.manifest(self.plan.name(maker)) if maker else None
        trained = (manifest or {}).get("template_sha256")
        now = facts.get("template_sha256", {}).get(voice.chat_template)
        if trained and now and trained != now:
            raise ModelError(
                f"the chat template of {policy} is another than the one it was trained with; "
                f"train it anew with --redo, or pin agents.{policy.agent}.revision"
            )
