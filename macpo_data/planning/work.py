"""How much work a step is, and how long that takes: tokens, FLOPs, seconds.

A token that is read costs 2 FLOPs for each weight that it meets, one that is trained on three times
as much (Kaplan et al. 2020, section 2.1): forward, the gradients of what passes through, and those
of the weights. The last third is hardly there where only an adapter is trained, and a forward pass
more is there where activations are computed again. Attention adds 2 FLOPs for each earlier token
and each number of a query, in a layer. Writing reads all weights and the cache for each token of a
batch, so that there the memory's bandwidth counts (Pope et al. 2022, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

from macpo_data.generation.cost import Ask, Texts
from macpo_data.planning.hardware import Hardware
from macpo_data.planning.shapes import BYTES, Shape
from macpo_data.recipe.training import DPO, SFT, Finetuning, Negative, RewardTraining, Train

# Shares of the peak that are assumed: of FLOP/s while tokens are read or trained on, of bandwidth
# while they are written, by vLLM and by transformers.
READING = 0.4
SERVED, WRITTEN = 0.6, 0.3
FLOAT32 = 8  # times slower than bfloat16 on a card
VLLM_ROWS = 256  # sequences that vLLM writes at once, where there is room


@dataclass(frozen=True)
class Work:
    """What some models have to do; `seconds` is None where a card is not known."""

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float | None = 0.0

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        unknown = self.seconds is None or other.seconds is None
        seconds = None if unknown else (self.seconds or 0.0) + (other.seconds or 0.0)
        return Work(self.tokens + other.tokens, self.flops + other.flops, seconds)


def forward(shape: Shape, length: float) -> float:
    """FLOPs of a token in a sequence of some length, read once."""
    attention = 2 * shape.layers * shape.heads * shape.head_dim * length
    return 2 * shape.active + attention


def reading(
    shape: Shape, tokens: float, length: float, on: Hardware, devices: int, dtype: str
) -> Work:
    """Tokens that are read once."""
    return _computing(tokens, tokens * forward(shape, length), on, devices, dtype)


def training(
    shape: Shape,
    texts: Texts,
    section: SFT | DPO | RewardTraining,
    settings: Train,
    on: Hardware,
    devices: int,
    finetuning: Finetuning = "lora",
) -> Work:
    """All epochs of one training."""
    answers = [texts.chosen, texts.rejected]
    if isinstance(section, SFT):
        answers = [texts.rejected if isinstance(section, Negative) else texts.chosen]
    longest = settings.max_length
    answers = [min(answer, max(0.0, longest - texts.prompt)) for answer in answers]
    shared = isinstance(section, DPO) and settings.shared_prompt
    prompts = min(texts.prompt, longest) * (1 if shared else len(answers))
    a_row = prompts + sum(answers)
    tokens = texts.rows * a_row * section.epochs
    passes = (3 if finetuning == "full" else 2) + settings.gradient_checkpointing
    held = isinstance(section, DPO) and section.reference != "previous"
    # A reference that is not where the training starts reads each row once.
    flops = (tokens * passes + texts.rows * a_row * held) * forward(shape, a_row)
    return _computing(tokens, flops, on, devices, settings.on(bfloat16=on.bfloat16).dtype)


def writing(
    shape: Shape,
    ask: Ask,
    on: Hardware,
    *,
    cards: int,
    rows: float,
    served: bool,
    dtype: str = "auto",
) -> Work:
    """Answers of one kind: their prompts are read, then token by token is written.

    Args:
        shape: of who writes.
        ask: how many, and how long.
        on: the hardware.
        cards: that work on the same answers.
        rows: answers that are written at once.
        served: by vLLM, whose batch is always full; else a batch waits for its longest answer.
        dtype: in which numbers it runs; auto as it was saved.
    """
    calls = ask.prompts * ask.calls
    kind = shape.dtype if dtype == "auto" else dtype
    read = reading(shape, calls * ask.tokens_in, ask.tokens_in, on, cards, kind)
    out = calls * ask.tokens_out
    length = ask.tokens_in + ask.tokens_out / 2
    flops = out * forward(shape, length)
    rows = max(1.0, min(rows, calls))
    of_answer = ask.tokens_out if served else min(ask.most_out, 2 * ask.tokens_out)
    steps = calls / rows * of_answer
    b = BYTES.get(kind, 4)
    # Few sequences of a mixture of experts leave some of them unread; many read all.
    weights = min(shape.parameters, shape.active * rows) * b
    cache = rows * length * 2 * b * shape.layers * shape.kv_heads * shape.head_dim
    computed = _computing(out, flops, on, cards, kind)
    if on.bandwidth is None or computed.seconds is None:
        return read + computed
    bandwidth = on.bandwidth * (cards if on.is_gpu else 1) * (SERVED if served else WRITTEN)
    moved = steps * (weights + cache) / bandwidth
    return read + Work(out, flops, max(moved, computed.seconds))


def _computing(tokens: float, flops: float, on: Hardware, devices: int, dtype: str) -> Work:
    """Work whose time goes by FLOPs."""
    if on.flops is None:
        return Work(tokens, flops, None)
    slower = FLOAT32 if on.is_gpu and dtype == "float32" else 1
    return Work(tokens, flops, flops * slower / (on.flops * READING * devices))


def assumed(on: Hardware) -> str:
    """The shares of the peak that were assumed, for a person to read."""
    if on.flops is None:
        return f"{on.name} is in no table: no times"
    by_vllm = f"{SERVED:.0%} by vLLM and " if on.is_gpu else ""
    return (
        f"assumed: {READING:.0%} of {on.flops * on.count / 1e12:,.4g} TFLOP/s in training and "
        f"reading; of the memory's bandwidth in writing, {by_vllm}{WRITTEN:.0%} by transformers"
    )
