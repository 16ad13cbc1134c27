"""What a piece of work needs of each device, whether that fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain, islice

from macpo_data.errors import ModelError
from macpo_data.planning import memory
from macpo_data.planning.hardware import Hardware
from macpo_data.planning.memory import ADAM, ADAM_8BIT, GIB, PROCESS, Training
from macpo_data.planning.shapes import Shape
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.launcher import read_launcher
from macpo_data.recipe.training import Lora, Train

SERVED_SHARE = 0.9  # of a card, which vLLM takes unless the recipe says otherwise


@dataclass(frozen=True)
class Way:
    """One way of doing a piece of work."""

    settings: str  # what to set for it; empty: the recipe as it is
    peak: float  # bytes on each device
    cards: int = 1  # that take part
    served: bool = False  # by vLLM


@dataclass(frozen=True)
class Fit:
    """A piece of work on some hardware."""

    what: str  # for a person to read, such as: train student
    base: str
    way: Way  # as the recipe has it
    room: float  # bytes of each device
    others: tuple[Way, ...] = ()  # ways that fit, where the recipe's own does not

    @property
    def fits(self) -> bool:
        """Whether the recipe's own way does."""
        return self.way.peak <= self.room

    @property
    def best(self) -> Way:
        """The recipe's own way, or where that does not fit the first one that does."""
        return self.others[0] if self.others and not self.fits else self.way

    def __str__(self) -> str:
        """What does not fit, and what would.

        >>> over = Fit("train student", "org/m", Way("", 90 * GIB), 79 * GIB)
        >>> str(over)
        'train student: 90 GiB of 79; name a smaller base than org/m, or a bigger machine'
        """
        line = f"{self.what}: {self.way.peak / GIB:,.0f} GiB of {self.room / GIB:,.0f}"
        if not self.others:
            return f"{line}; name a smaller base than {self.base}, or a bigger machine"
        ways = " or ".join(f"{way.settings} ({way.peak / GIB:,.0f} GiB)" for way in self.others)
        return f"{line}; fits with {ways}"


def room(on: Hardware, share: float = 1.0, now: bool = False) -> float:
    """Bytes of a device for what is loaded; `now` leaves out what others hold at this moment."""
    return (on.free if now else on.memory) * share - PROCESS


def launched(settings: Train) -> tuple[int, int]:
    """How many processes an accelerate config starts, and over how many of them it shards.

    One where there is no config, or none that can be read: preflight says so.
    """
    if settings.launcher is None:
        return 1, 1
    try:
        config = read_launcher(settings.launcher)
    except ModelError:
        return 1, 1
    return config.num_processes, config.num_processes if config.distributed_type == "FSDP" else 1


def trained(
    what: str, base: str, shape: Shape, work: Training, batch: int, prompt: float, on: Hardware
) -> Fit:
    """A training: `batch` rows in each step of the optimizer, `work.rows` in a micro batch."""
    processes, shards = launched(work.settings)
    work = replace(work, shards=shards, rows=max(1, min(work.rows, batch // processes)))
    cards = min(processes, on.count)

    def peak(each: Training) -> float:
        return memory.training(shape, each, prompt).total

    own = Fit(what, base, Way("", peak(work), cards), room(on))
    if own.fits:
        return own
    ways = [_first(family, peak, own.room) for family in _families(work, batch, on)]
    return replace(own, others=tuple(way for way in ways if way))


Variants = Iterator[tuple[str, Training, int]]  # settings, the training, cards


def _families(work: Training, batch: int, on: Hardware) -> list[Variants]:
    """Trainings that need less, small changes first: fewer rows, fewer bits, more cards."""
    return [
        islice(_smaller(work, batch, 1), 1, None),
        _in_eight_bits(work, batch, on),
        _in_four_bits(work, batch, on),
        _sharded(work, batch, on),
        _of_an_adapter(work, batch, on),
    ]


def _smaller(work: Training, batch: int, cards: int) -> Variants:
    """The training itself, then with fewer activations at once."""
    yield "", work, cards
    tight = work.settings.model_copy(update={"gradient_checkpointing": True})
    sizes = [n for n in range(work.rows - 1, 0, -1) if batch % (n * cards) == 0]
    checkpointing = "train.gradient_checkpointing=true"
    if not work.settings.gradient_checkpointing:
        yield checkpointing, replace(work, settings=tight), cards
    for n in sizes:
        yield f"train.micro_batch_size={n}", replace(work, rows=n), cards
    if sizes and not work.settings.gradient_checkpointing:
        words = f"{checkpointing}, train.micro_batch_size={sizes[-1]}"
        yield words, replace(work, settings=tight, rows=sizes[-1]), cards


def _in_eight_bits(work: Training, batch: int, on: Hardware) -> Variants:
    if on.is_gpu and work.finetuning == "full" and work.moments == ADAM:
        for words, each, cards in _smaller(replace(work, moments=ADAM_8BIT), batch, 1):
            yield _and("train.optimizer=adamw_8bit", words), each, cards


def _of_an_adapter(work: Training, batch: int, on: Hardware) -> Variants:
    if work.finetuning == "full":
        adapter = replace(work, finetuning="lora")
        ways = [_smaller(adapter, batch, 1), _in_four_bits(adapter, batch, on)]
        for words, each, cards in chain(*ways, _sharded(adapter, batch, on)):
            yield _and("train.finetuning=lora", words), each, cards


def _in_four_bits(work: Training, batch: int, on: Hardware) -> Variants:
    if on.is_gpu and work.finetuning == "lora" and work.settings.quantization == "none":
        quantised = work.settings.model_copy(update={"quantization": "nf4"})
        for words, each, cards in _smaller(replace(work, settings=quantised, shards=1), batch, 1):
            yield _and("train.quantization=nf4", words), each, cards


def _sharded(work: Training, batch: int, on: Hardware) -> Variants:
    if not on.is_gpu or work.settings.quantization != "none":
        return
    for n in (2, 4, 8, 16, 32, 64):
        if work.shards < n <= on.count and batch % n == 0:
            each = replace(work, shards=n, rows=max(1, min(work.rows, batch // n)))
            for words, smaller, cards in _smaller(each, batch, n):
                yield _and(f"FSDP over {n} (train.launcher)", words), smaller, cards


def _and(first: str, then: str) -> str:
    return ", ".join(filter(None, (first, then)))


def _first(variants: Variants, peak: Callable[[Training], float], most: float) -> Way | None:
    for settings, work, cards in variants:
        if (needs := peak(work)) <= most:
            return Way(settings, needs, cards)
    return None


def serves(settings: Engine, on: Hardware) -> bool:
    """Whether vLLM writes: `auto` takes it on named cards, and here where it is installed."""
    if settings.name == "auto":
        return on.is_gpu and (on.named or find_spec("vllm") is not None)
    return settings.name in ("vllm", "ray")


@dataclass(frozen=True)
class Reading:
    """What one agent's model writes or reads at once."""

    prompt: float  # tokens
    answer: float  # tokens at most
    adapter: float  # weights of those that are loaded beside
    writes: bool  # else it scores
    by_vllm: bool
    beside: float = 0.0  # bytes of other bases that stay loaded


def spoken(
    what: str, base: str, shape: Shape, work: Reading, settings: Engine, on: Hardware
) -> Fit:
    """Writing or scoring by one model."""
    own_cards = settings.vllm.tensor_parallel * settings.vllm.pipeline_parallel
    own_bits = 8 if settings.quantization in ("fp8", "int8") else None
    share = settings.vllm.memory or (SERVED_SHARE if on.is_gpu else 1.0)

    def served(cards: int, bits: int | None, words: str) -> Way:
        longest = work.prompt + work.answer
        needs = memory.serving(shape, cards, longest, work.adapter, bits).total
        return Way(words, needs / share, cards, served=True)

    def embedded(rows: int, words: str) -> Way:
        peak = memory.generating if work.writes else memory.scoring
        dtype = settings.dtype
        needs = peak(shape, rows, work.prompt, work.answer, work.adapter, dtype).total
        return Way(words, needs + work.beside)

    way = served(own_cards, own_bits, "") if work.by_vllm else embedded(settings.batch_size, "")
    own = Fit(what, base, way, room(on))
    if own.fits:
        return own
    fewer = () if work.by_vllm else _halves(settings.batch_size)
    smaller = (embedded(rows, f"engine.batch_size={rows}") for rows in fewer)
    name = "engine.name=vllm" if work.writes else "score.engine=vllm"
    name = "" if work.by_vllm else name
    counts = [n for n in (1, 2, 4, 8, 16) if n <= on.count and shape.heads % n == 0]
    cards = {n: f"engine.vllm.tensor_parallel={n}" if n > 1 else "" for n in counts}
    more = (served(n, own_bits, _and(name, cards[n])) for n in counts if on.is_gpu)
    short = (
        served(n, 8, _and(_and(name, cards[n]), "engine.quantization=fp8"))
        for n in counts
        if on.is_gpu and own_bits is None
    )
    ways = [way for family in (smaller, more) for way in _fitting(family, own.room)[:1]]
    return replace(own, others=tuple(ways or _fitting(short, own.room)[:1]))


def _fitting(ways: Iterable[Way], most: float) -> list[Way]:
    return [way for way in ways if way.peak <= most]


def _halves(size: int) -> Iterator[int]:
    while (size := size // 2) > 0:
        yield size


def adapter_of(shape: Shape, lora: Lora, learns: bool) -> float:
    """Weights of the adapters that are loaded beside a base whose agent learns: two, as a rule."""
    return 2.0 * memory.adapter_weights(shape, lora) if learns else 0.0
