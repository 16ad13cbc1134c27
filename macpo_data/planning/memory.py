"""How much memory a process needs at its peak: training, writing, scoring.

Sources: the bytes of weights, gradients and Adam's moments are those of Rajbhandari et al. 2020
(ZeRO, section 3); four bits a weight those of Dettmers et al. 2023 (QLoRA, section 3: 4.127 with
double quantisation). Activations follow Korthikanti et al. 2022 (Reducing Activation Recomputation,
section 4), counted anew for what transformers, peft and trl keep: attention without its matrix of
probabilities, norms in float32, no inputs of matrices that are frozen. `python -m
benchmarks.planning` holds the formulas against measured peaks.

All sizes are bytes, all of one process, without what a process holds that does nothing (PROCESS).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from macpo_data.models.fits import ALL_LINEAR
from macpo_data.models.logprobs import MAX_MASK
from macpo_data.planning.shapes import BYTES, Shape
from macpo_data.recipe.training import Finetuning, Lora, Train

GIB = 1 << 30
PROCESS = GIB  # what is imported, and on a card its context: measured in an empty process
NF4 = 4.127 / 8  # bytes of a weight
ADAM = 8  # bytes of both moments of a weight in float32
ADAM_8BIT = 2
TILE_TOKENS, TILE_WORDS = 4096, 32768  # trl reads the head in tiles of this size
TILES = 7  # in float32, in which it works on a tile where it has no kernel of its own, on a CPU
CHUNK = 1 << 27  # bytes of the logits that macpo's own head makes at once


@dataclass(frozen=True)
class Peak:
    """What a process holds at its fullest moment."""

    weights: float = 0.0
    trained: float = 0.0  # what is trained besides: adapter, gradients, moments
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0  # keys and values while it writes

    @property
    def total(self) -> float:
        """All of it together."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Training:
    """What decides how much memory a training takes, besides the base."""

    settings: Train
    lora: Lora
    pairs: bool  # two answers to a prompt, as in DPO
    rows: int  # of a micro batch
    finetuning: Finetuning = "lora"
    moments: int = ADAM  # bytes of the optimizer's states of a weight
    shards: int = 1  # processes that share the weights out (FSDP)
    gpu: bool = False  # on a card
    head: bool = True  # log-probabilities are read; a reward model has no such head

    @property
    def dtype_bytes(self) -> int:
        """Of a number."""
        return BYTES[self.settings.dtype]

    def tokens(self, prompt: float) -> float:
        """Of a micro batch whose rows are as long as they may be, prompts being of this length.

        Pairs share their prompt where `train.shared_prompt` says so.
        """
        longest = self.settings.max_length
        if not self.pairs:
            return self.rows * longest
        shared = min(prompt, longest) if self.settings.shared_prompt and self.head else 0
        return self.rows * (2 * longest - shared)


def adapter_weights(shape: Shape, lora: Lora) -> int:
    """Weights of a LoRA adapter: r * (inputs + outputs) of each matrix that has one.

    Of experts nothing is counted, since peft's names do not reach them.
    """
    sizes = [sum(shape.matrices[name]) for name in _with_adapter(shape, lora)]
    return shape.layers * lora.r * sum(sizes)


def _with_adapter(shape: Shape, lora: Lora) -> set[str]:
    """The matrices of a layer that have an adapter."""
    own = {*shape.matrices}
    return own if ALL_LINEAR in lora.targets else own & {*lora.targets}


def training(shape: Shape, work: Training, prompt: float) -> Peak:
    """The peak of one training process.

    Args:
        shape: of the base.
        work: how it is trained.
        prompt: tokens of a typical prompt.
    """
    b, n = work.dtype_bytes, work.shards
    weights = float(shape.parameters * b)
    if work.settings.quantization == "nf4":
        weights = shape.in_matrices * NF4 + shape.elsewhere * b
    if work.finetuning == "lora":
        trained = adapter_weights(shape, work.lora) * (4 + 4 + ADAM)  # in float32
    else:
        # Trained in float32, and multiplied in copies of fewer digits; shards make those in turn.
        copies = b if b < 4 and n == 1 else 0
        weights = float(shape.parameters * (4 + copies))
        trained = shape.parameters * (4 + work.moments)
    # The layer at work and the next one are whole on every process.
    gathered = 2 * b * shape.in_matrices / shape.layers if n > 1 else 0.0
    tokens = work.tokens(prompt)
    return Peak(
        weights=weights / n + gathered,
        trained=trained / n,
        activations=_activations(shape, work, tokens),
        logits=_logits(shape, work, tokens) if work.head else 0.0,
    )


def _activations(shape: Shape, work: Training, tokens: float) -> float:
    """What the backward pass needs of the forward pass, and what it works with itself."""
    b = work.dtype_bytes
    kept = kept_of_layer(shape, work)
    if work.settings.gradient_checkpointing:
        kept_of_all = shape.layers * b * shape.hidden + kept  # each layer's input, and one layer
    else:
        kept_of_all = shape.layers * kept
    at_work = b * (3 * shape.intermediate * shape.active_experts + 2 * shape.hidden)
    mask = tokens * tokens / work.rows * (1 + b) if work.pairs and work.head else 0.0
    return tokens * (kept_of_all + at_work) + mask


def kept_of_layer(shape: Shape, work: Training) -> float:
    """Bytes of a token that a layer keeps for its backward pass.

    The norms' inputs in float32; queries, keys and values (as many heads as queries) and what
    attention gives; gate, its activation and up. Of a matrix that is trained, or has an adapter,
    also its input.
    """
    b, h, q = work.dtype_bytes, shape.hidden, shape.heads * shape.head_dim
    i = shape.intermediate * shape.active_experts
    lora = work.finetuning == "lora"
    targets = _with_adapter(shape, work.lora) if lora else {*shape.matrices}
    inputs = h * bool(targets & {"q_proj", "k_proj", "v_proj"})
    inputs += h * bool(targets & {"gate_proj", "up_proj"})
    inputs += q * ("o_proj" in targets) + i * ("down_proj" in targets)
    inputs += shape.norms * h if work.finetuning == "full" else 0
    return 4 * shape.norms * h + b * (4 * q + 3 * i + inputs)


def _logits(shape: Shape, work: Training, tokens: float) -> float:
    """Log-probabilities are read in pieces: trl's tiles for fine-tuning, our own for pairs."""
    if not work.pairs:
        tile = min(tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_WORDS)
        head = shape.vocabulary * shape.hidden * 4 if work.finetuning == "full" else 0
        return tile * (work.dtype_bytes + 4 * TILES * (not work.gpu)) + head
    if work.settings.shared_prompt:
        return 3 * min(CHUNK, 4 * tokens * shape.vocabulary)
    return (work.dtype_bytes + 12) * tokens * shape.vocabulary


def generating(
    shape: Shape, rows: int, prompt: float, new: float, adapters: float = 0.0, dtype: str = "auto"
) -> Peak:
    """The peak while `rows` answers are written at once by transformers.

    Args:
        shape: of the base.
        rows: sequences of a batch.
        prompt: tokens of a prompt.
        new: tokens of an answer at most.
        adapters: weights of all adapters that are loaded.
        dtype: in which numbers it runs; auto as it was saved.
    """
    b = shape.bytes_saved if dtype == "auto" else BYTES[dtype]
    per_token = 2 * b * shape.layers * shape.kv_heads * shape.head_dim
    cache = rows * (prompt + new) * per_token
    return Peak(
        weights=shape.parameters * b + 4 * adapters,
        activations=rows * prompt * _passing(shape, b),
        logits=rows * shape.vocabulary * 4 * 6,  # sorted and summed up for top_p
        cache=cache * (1 + 1 / shape.layers),  # a layer's own grows by a copy
    )


def scoring(
    shape: Shape,
    rows: int,
    prompt: float,
    answer: float,
    adapters: float = 0.0,
    dtype: str = "auto",
) -> Peak:
    """The peak while `rows` answers are read at once; the mask bounds how many those are."""
    b = shape.bytes_saved if dtype == "auto" else BYTES[dtype]
    length = prompt + answer
    tokens = min(rows, max(1.0, MAX_MASK / length**2)) * length
    return Peak(
        weights=shape.parameters * b + 4 * adapters,
        activations=tokens * (_passing(shape, b) + length * (1 + b)),
        logits=2 * min(CHUNK, 4 * tokens * shape.vocabulary),  # nothing is kept for gradients
    )


def serving(
    shape: Shape, cards: int, longest: float, adapters: float = 0.0, bits: int | None = None
) -> Peak:
    """What vLLM needs of each of `cards` at least: its share, and one sequence of that length.

    It takes what its share of the card leaves besides, for more sequences at once.
    """
    b = shape.bytes_saved
    of_weight = b if bits is None else bits / 8
    per_token = 2 * b * shape.layers * shape.kv_heads * shape.head_dim
    return Peak(
        weights=(shape.in_matrices * of_weight + shape.elsewhere * b + 2 * adapters) / cards,
        activations=8192 * _passing(shape, b) / cards,  # tokens that it reads in one step
        cache=longest * per_token / cards,
    )


def _passing(shape: Shape, b: int) -> float:
    """Bytes of a token while it passes through a layer and nothing is kept."""
    inner = 3 * shape.intermediate * shape.active_experts
    return b * (inner + 2 * shape.hidden) + 4 * shape.hidden
