"""What the steps of a run take: memory, disk, work and hours of each, and what does not fit.

Every figure is an estimate. A step that is done takes nothing; what fits with other settings alone
is counted with the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from macpo_data.bases.named import folder_of, is_local_base, is_made, is_ready
from macpo_data.errors import MacpoError, ModelError
from macpo_data.generation.cost import Ask, Estimate, Sizes, Texts, estimate
from macpo_data.methods.registry import method
from macpo_data.outside import parse_json, read_bytes
from macpo_data.plan import Plan, Step
from macpo_data.planning import memory
from macpo_data.planning.fits import Fit, Reading, adapter_of, serves, spoken, trained
from macpo_data.planning.hardware import Hardware
from macpo_data.planning.shapes import BYTES, Shape, cached_file, shape_of
from macpo_data.planning.work import VLLM_ROWS, Work, assumed, reading, training, writing
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.evaluation import TRAINED, RewardModel
from macpo_data.recipe.recipe import Recipe, TrainSettings
from macpo_data.recipe.training import DPO, SFT, Finetuning, Lora, RewardTraining, Train
from macpo_data.store.store import State, Store

TEXT_BYTES = 4  # of a token on disk, compressed, with the columns beside it
ADAPTER_BYTES = 4
NONE = Work()
REWARD = Step("train", 0, 0, "reward", "reward", "reward")
"""The training of a run's own reward model, where its method's plan has none."""


@dataclass(frozen=True)
class Row:
    """What one step takes."""

    step: Step
    state: State
    peak: float | None = None  # bytes on the fullest device; None where no model runs here
    disk: float = 0.0
    work: Work = NONE
    fits: tuple[Fit, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """What some steps of a run take."""

    on: Hardware
    rows: list[Row]
    estimates: dict[Step, Estimate]  # of the gen steps that are not done
    download: dict[str, float] = field(default_factory=dict)  # bytes of each base that is not here
    unknown: dict[str, str] = field(default_factory=dict)  # bases of unknown size, and why
    made_once: tuple[str, ...] = ()  # bases that have to be made on this machine first

    @property
    def peak(self) -> float:
        """Of the fullest step; bytes on a device."""
        return max((row.peak or 0.0 for row in self.rows), default=0.0)

    @property
    def disk(self) -> float:
        """Bytes of all results, without what is downloaded."""
        return sum(row.disk for row in self.rows)

    @property
    def work(self) -> Work:
        """All of it."""
        return sum((row.work for row in self.rows), NONE)

    @property
    def misfits(self) -> list[Fit]:
        """What does not fit, each once: of alike ones that which needs most."""
        worst: dict[tuple[str, str], Fit] = {}
        for fit in (fit for row in self.rows for fit in row.fits if not fit.fits):
            key = fit.what, fit.base
            if key not in worst or worst[key].way.peak < fit.way.peak:
                worst[key] = fit
        return list(worst.values())

    @property
    def notes(self) -> list[str]:
        """What the figures rest on, for a person to read."""
        return [assumed(self.on), *(f"no figures of {b}: {why}" for b, why in self.unknown.items())]


def outlook(
    plan: Plan,
    store: Store,
    states: Mapping[Step, State],
    steps: Sequence[Step],
    sizes: Sizes,
    on: Hardware,
) -> Outlook:
    """What some steps of a run take.

    Args:
        plan: of the run.
        store: of the run, whose finished results take nothing.
        states: of all steps.
        steps: which of them.
        sizes: of the data.
        on: the hardware.
    """
    todo = [step for step in steps if states[step] != "done"]
    sets = [plan.dataset(s) for s in todo if s.kind == "train" and s.objective != "reward"]
    wanted = dict.fromkeys(s for s in [*todo, *sets] if s.kind == "gen" and states[s] != "done")
    in_order = [step for step in plan.steps if step in wanted]
    rules = {step: method(plan.recipe, step).build for step in in_order}
    estimates = estimate(plan, store, sizes, rules)
    builder = _Builder(plan, store, sizes, on, estimates)
    rows = [builder.row(s, states[s]) if s in todo else Row(s, states[s]) for s in steps]
    own = {step: each for step, each in estimates.items() if step in todo}
    return Outlook(on, rows, own, builder.download, builder.unknown, tuple(builder.made_once))


def together(outlooks: Sequence[Outlook]) -> Outlook:
    """Several as one: of steps that they share, only one may have counted."""
    rows = [row for each in outlooks for row in each.rows]
    download = {base: size for each in outlooks for base, size in each.download.items()}
    unknown = {base: why for each in outlooks for base, why in each.unknown.items()}
    estimates = {step: e for each in outlooks for step, e in each.estimates.items()}
    made_once = tuple(dict.fromkeys(base for each in outlooks for base in each.made_once))
    return Outlook(outlooks[0].on, rows, estimates, download, unknown, made_once)


def sections(recipe: Recipe, step: Step) -> SFT | DPO | RewardTraining:
    """The section of a recipe that says how a train step trains."""
    named = {"sft_chosen": recipe.sft, "sft_rejected": recipe.negative, "reward": recipe.reward}
    return named.get(str(step.objective), recipe.dpo)  # type: ignore[return-value]


def finetuning_of(recipe: Recipe, step: Step) -> Finetuning:
    """Whether a train step trains an adapter, or all weights."""
    rewards = step.objective == "reward"
    return recipe.reward_finetuning if rewards else recipe.finetuning(step.learner)


def train_fit(
    recipe: Recipe, step: Step, agent: Agent, shape: Shape, prompt: float, on: Hardware
) -> Fit:
    """Whether a train step fits."""
    section = sections(recipe, step)
    what = "the reward model" if isinstance(section, RewardTraining) else step.learner
    how = finetuning_of(recipe, step)
    return training_fit(f"train {what}", recipe, section, agent, shape, prompt, on, how)


def training_fit(
    what: str,
    settings: Recipe | TrainSettings,
    section: SFT | DPO | RewardTraining,
    agent: Agent,
    shape: Shape,
    prompt: float,
    on: Hardware,
    finetuning: Finetuning,
) -> Fit:
    """Whether a training fits.

    Args:
        what: for a person to read.
        settings: whose adapter's shape and training count.
        section: of them, which says what is minimised.
        agent: whose base is trained.
        shape: of the base.
        prompt: tokens of a typical prompt.
        on: the hardware.
        finetuning: whether an adapter is trained, or all weights.
    """
    rewards = isinstance(section, RewardTraining)
    train = settings.train.on(bfloat16=on.bfloat16)
    is_full = finetuning == "full"
    work = memory.Training(
        train.model_copy(update={"dtype": "float32"}) if rewards and is_full else train,
        settings.lora,
        pairs=not isinstance(section, SFT),
        rows=train.micro_batch_size or section.batch_size,
        finetuning=finetuning,
        moments=memory.ADAM_8BIT if train.optimizer == "adamw_8bit" else memory.ADAM,
        gpu=on.is_gpu,
        head=not rewards,
    )
    return trained(what, agent.base, shape, work, section.batch_size, prompt, on)


def speech_fit(recipe: Recipe, ask: Ask, shape: Shape, on: Hardware, beside: float = 0.0) -> Fit:
    """Whether one agent's writing or scoring fits, by the engine that the recipe names."""
    writes = ask.kind != "score"
    agent = recipe.agents[ask.agent]
    learns = agent.role in ("teacher", "student") and recipe.finetuning(ask.agent) == "lora"
    work = Reading(
        ask.tokens_in,
        ask.most_out,
        adapter_of(shape, recipe.lora, learns),
        writes,
        by_vllm=serves(recipe.engine, on) if writes else recipe.score.engine == "vllm",
        beside=beside,
    )
    verb = "write by" if writes else "score under"
    return spoken(f"{verb} {ask.agent}", agent.base, shape, work, recipe.engine, on)


class _Builder:
    """Lays memory and work over steps, and gathers what is to be downloaded."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        sizes: Sizes,
        on: Hardware,
        estimates: Mapping[Step, Estimate],
    ) -> None:
        self.plan, self.store, self.sizes, self.on = plan, store, sizes, on
        self.recipe, self.estimates = plan.recipe, estimates
        self.download: dict[str, float] = {}
        self.unknown: dict[str, str] = {}
        self.made_once: dict[str, None] = {}

    def row(self, step: Step, state: State) -> Row:
        """What one step takes."""
        make = self._train if step.kind == "train" else self._gen
        return make(step, state)

    def _shape(self, agent: Agent) -> Shape | None:
        """Of a base that is loaded here, which is then to be downloaded if it is not here."""
        try:
            shape = shape_of(agent)
        except MacpoError as error:
            self.unknown[agent.base] = str(error)
            return None
        if not is_here(agent):
            self.download[agent.base] = float(shape.parameters * shape.bytes_saved)
        if is_made(agent.base) and not _is_made_yet(agent.base):
            self.made_once[agent.base] = None
        return shape

    def _train(self, step: Step, state: State) -> Row:
        recipe, on = self.recipe, self.on
        rewards = step.objective == "reward"
        agent = self.plan.reward_agent if rewards else recipe.agents[step.learner]
        if recipe.engine.name == "fake" or (shape := self._shape(agent)) is None:
            return Row(step, state)
        texts = self._texts(step)
        fit = train_fit(recipe, step, agent, shape, texts.prompt, on)
        how = finetuning_of(recipe, step)
        devices = fit.best.cards if on.is_gpu else on.count
        section = sections(recipe, step)
        work = training(shape, texts, section, recipe.train, on, devices, how)
        disk = saved_bytes(shape, recipe.lora, recipe.train, how)
        return Row(step, state, fit.best.peak, disk, work, (fit,))

    def _texts(self, step: Step) -> Texts:
        """The dataset that a train step reads: as it is on disk, or as it is estimated."""
        size = self.sizes.chars_per_token
        if step.objective == "reward":
            sample = self.sizes.sample["d1"]
            return Texts.of(sample, size, self.sizes.prompts["d1"] / (len(sample) or 1))
        dataset = self.plan.dataset(step)
        if dataset in self.estimates:
            return self.estimates[dataset].texts
        path = self.store.path(self.plan.name(dataset)) / "pairs.parquet"
        columns = ["prompt", "chosen", "rejected"]
        return Texts.of(pl.read_parquet(path, columns=columns), size)

    def _gen(self, step: Step, state: State) -> Row:
        estimate, recipe = self.estimates[step], self.recipe
        texts = estimate.texts
        written = texts.rows * (texts.prompt + texts.chosen + texts.rejected)
        here = [ask for ask in estimate.asks if ask.here]
        written += sum(ask.prompts * ask.calls * ask.tokens_out for ask in estimate.asks)
        disk = written * TEXT_BYTES
        if recipe.engine.name == "fake":
            return Row(step, state, disk=disk)
        shapes = {ask.agent: self._shape(recipe.agents[ask.agent]) for ask in here}
        fits, work = [], Work()
        for ask in here:
            if (shape := shapes[ask.agent]) is None:
                continue
            fit = speech_fit(recipe, self._longest(ask), shape, self.on, self._beside(ask, shapes))
            fits.append(fit)
            work += self._spoken(ask, shape, fit)
        for model, read in estimate.scorers.values():
            fits += self._scored(model, read)
        peak = max((fit.best.peak for fit in fits), default=None)
        return Row(step, state, peak, disk, work, tuple(fits))

    def _longest(self, ask: Ask) -> Ask:
        """What is scored is as long as it may be, and no mean."""
        most = float(self.recipe.sampling.max_new_tokens)
        return replace(ask, most_out=most) if ask.kind == "score" else ask

    def _beside(self, ask: Ask, shapes: Mapping[str, Shape | None]) -> float:
        """Bytes of the other bases that stay loaded while this one works."""
        own = self.recipe.agents[ask.agent].base
        bases = {self.recipe.agents[a].base: s for a, s in shapes.items() if s}
        sizes = sorted(s.parameters * s.bytes_saved for b, s in bases.items() if b != own)
        kept = self.recipe.engine.keep_loaded - 1
        return float(sum(sizes[-kept:])) if kept else 0.0

    def _spoken(self, ask: Ask, shape: Shape, fit: Fit) -> Work:
        """The work of one agent's requests, by the way that fits."""
        way, on, engine = fit.best, self.on, self.recipe.engine
        cards = way.cards if on.is_gpu else on.count
        if ask.kind == "score":
            tokens = ask.prompts * ask.calls * ask.tokens_in
            kind = shape.dtype if engine.dtype == "auto" else engine.dtype
            return reading(shape, tokens, ask.tokens_in, on, cards, kind)
        rows = float(engine.batch_size)
        if way.served:
            own = 2 * shape.bytes_saved * shape.layers * shape.kv_heads * shape.head_dim
            left = cards * on.memory - shape.parameters * shape.bytes_saved
            rows = min(VLLM_ROWS, max(1.0, left / (own * (ask.tokens_in + ask.tokens_out))))
            rows *= engine.vllm.data_parallel
        return writing(
            shape, ask, on, cards=cards, rows=rows, served=way.served, dtype=engine.dtype
        )

    def _scored(self, model: RewardModel, read: Texts) -> list[Fit]:
        """A reward model reads answers, which is little work beside writing them."""
        agent = self.plan.reward_agent if model.model == TRAINED else model.agent
        if (shape := self._shape(agent)) is None:
            return []
        work = Reading(read.prompt, read.chosen, 0.0, writes=False, by_vllm=False)
        return [spoken("score by", agent.base, shape, work, self.recipe.engine, self.on)]


def saved_bytes(shape: Shape, lora: Lora, train: Train, finetuning: Finetuning) -> float:
    """Of the file of a trained policy: an adapter in float32, or all weights."""
    if finetuning == "lora":
        return float(memory.adapter_weights(shape, lora) * ADAPTER_BYTES)
    return float(shape.parameters * BYTES["float32" if train.dtype == "float32" else "bfloat16"])


def is_here(agent: Agent) -> bool:
    """Whether a base's weights are on this machine: they are not looked into."""
    if is_local_base(agent.base):
        return True
    if cached_file(agent.base, "model.safetensors", agent.revision):
        return True
    index = cached_file(agent.base, "model.safetensors.index.json", agent.revision)
    if index is None:
        return False
    return all((index.parent / name).exists() for name in _shards(index))


def _is_made_yet(base: str) -> bool:
    try:
        folder = folder_of(base)
    except ModelError:  # what it is made from is not here either, as the preflight says
        return False
    return folder is not None and is_ready(folder)


def _shards(index: Path) -> Iterable[str]:
    try:
        return set(parse_json(read_bytes(index))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        raise ModelError(f"{index} is damaged; remove it, and it is downloaded anew") from None
