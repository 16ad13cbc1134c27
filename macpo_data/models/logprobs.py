"""Log-probabilities of responses, used by both scoring and training.

The plain path reads prompt + response once per response. The shared path lays a prompt and all its
answers into one row, where each answer sees the prompt and itself:

    ids        p0 p1 p2 | a0 a1 | b0 b1 b2        positions   0 1 2 | 3 4 | 3 4 5

so that the prompt is read once, and makes logits for response tokens only, a chunk at a time. It
relies on what a model's attention does with such a mask: `why_not_shared` tries that on a base
before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macpo_data.models.head import in_place_of_logits

if TYPE_CHECKING:
    import torch

# Rows whose logits exist at once are chosen so that these many float32 numbers do.
MAX_LOGITS = 1 << 28
# Likewise the entries of the shared path's masks.
MAX_MASK = 1 << 26


@dataclass(frozen=True)
class Packed:
    """B prompts with all their answers, a row each; T tokens to predict, N answers in all."""

    ids: torch.Tensor  # (B, L)
    positions: torch.Tensor  # (B, L), restarted behind the prompt for each answer
    parts: torch.Tensor  # (B, L), 0 in the prompt, n in the nth answer, -1 in padding
    # A prompt's last token has as many successors as there are answers, so that labels cannot
    # simply be the ids moved by one.
    sources: torch.Tensor  # (T,), where in the flattened ids the predicting token stands
    targets: torch.Tensor  # (T,), the token to predict
    mask: torch.Tensor  # (N, R), response tokens; right-aligned, prompt by prompt


def answer_logprobs(
    model: Any,
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    pad_id: int,
    shared: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every token of every answer, each prompt having one or more.

    Returns:
        (N, R) log-probabilities and mask as `response_logprobs` has them, prompt by prompt.
    """
    if shared:
        return shared_logprobs(model, prompts, answers, pad_id)
    each = [(p, a) for p, own in zip(prompts, answers, strict=True) for a in own]
    return response_logprobs(model, [p for p, _ in each], [a for _, a in each], pad_id)


def response_logprobs(
    model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every response token given its prompt and the tokens before it.

    Sequences are padded on the right, where no token of theirs sees the padding: no mask is needed,
    and no row of attention is empty, of which some kernels make gradients that are no numbers. The
    model makes logits where a token predicts in any of them.

    Args:
        model: a causal language model of transformers, with or without peft.
        prompts: token ids, B lists, none empty.
        responses: token ids, B lists, none longer than R.
        pad_id: any token; nothing sees it.

    Returns:
        (B, R) log-probabilities in nats, 0 where there is no response token, and the (B, R) mask of
        response tokens. Both are right-aligned: a response of r tokens fills the last r columns.
    """
    import torch

    device = _causal(model).device
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    width = max(len(row) for row in rows)
    spans = [range(len(p) - 1, len(row) - 1) for p, row in zip(prompts, rows, strict=True)]
    places = sorted({at for span in spans for at in span}) or [0]
    kept = torch.tensor(places, device=device)
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
    predicts = torch.tensor([[at in span for at in places] for span in spans], device=device)
    targets = torch.tensor(
        [token for r in responses for token in r], dtype=torch.long, device=device
    )
    values = -torch.nn.functional.cross_entropy(logits[predicts].float(), targets, reduction="none")
    mask = _right_aligned([len(r) for r in responses], device)
    return values.new_zeros(mask.shape).masked_scatter(mask, values), mask


def shared_logprobs(
    model: Any,
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    pad_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `response_logprobs` gives for each prompt with each of its answers, prompts read once.

    Args:
        model: a causal language model, with or without peft, wrapped for several processes or not.
        prompts: token ids, B lists, none empty.
        answers: token ids, B lists of one or more answers, N in all.
        pad_id: any token; nothing sees it.
    """
    causal = _causal(model)
    packed = pack(prompts, answers, pad_id, causal.device)
    seen = attention(causal, packed.parts)
    # The call goes through the model as it is wrapped: what wraps it counts its calls.
    with in_place_of_logits(causal, packed.sources, packed.targets):
        values = model(
            input_ids=packed.ids,
            attention_mask=seen,
            position_ids=packed.positions,
            use_cache=False,
        ).logits
    logprobs = values.new_zeros(packed.mask.shape).masked_scatter(packed.mask, values)
    return logprobs, packed.mask


def pack(
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    pad_id: int,
    device: torch.device | str = "cpu",
    predict_prompts: bool = False,
) -> Packed:
    """Lay out prompts with their answers, padded on the right.

    Args:
        prompts: token ids, B lists, none empty.
        answers: token ids, B lists of one or more answers, N in all.
        pad_id: any token; nothing sees it.
        device: of the tensors.
        predict_prompts: predict each prompt's tokens as well, but for its first one; they come
            before those of its answers.
    """
    import torch

    width = max(len(p) + sum(map(len, own)) for p, own in zip(prompts, answers, strict=True))
    ids, positions, parts = [], [], []
    sources: list[int] = []
    targets: list[int] = []
    for row, (prompt, own) in enumerate(zip(prompts, answers, strict=True)):
        line, at, part = [*prompt], [*range(len(prompt))], [0] * len(prompt)
        if predict_prompts:
            sources += range(row * width, row * width + len(prompt) - 1)
            targets += prompt[1:]
        for number, answer in enumerate(own, start=1):
            begin = row * width + len(line)
            if answer:
                sources += [row * width + len(prompt) - 1]
                sources += range(begin, begin + len(answer) - 1)
            targets += answer
            line += answer
            at += range(len(prompt), len(prompt) + len(answer))
            part += [number] * len(answer)
        rest = width - len(line)
        ids.append(line + [pad_id] * rest)
        positions.append(at + [0] * rest)
        parts.append(part + [-1] * rest)
    lengths = [len(answer) for own in answers for answer in own]
    return Packed(
        ids=torch.tensor(ids, device=device),
        positions=torch.tensor(positions, device=device),
        parts=torch.tensor(parts, device=device),
        sources=torch.tensor(sources, dtype=torch.long, device=device),
        targets=torch.tensor(targets, dtype=torch.long, device=device),
        mask=_right_aligned(lengths, device),
    )


def _right_aligned(lengths: list[int], device: torch.device | str) -> torch.Tensor:
    """A mask with a row for each length, whose last columns are so many."""
    import torch

    widest = max(1, max(lengths))
    return torch.tensor([[False] * (widest - n) + [True] * n for n in lengths], device=device)


def window(model: Any) -> int | None:
    """The longest sequence whose tokens all see each other; a shared row overlooks the window."""
    config = _causal(model).config.get_text_config()
    size = getattr(config, "sliding_window", None)
    return size if size and getattr(config, "use_sliding_window", True) else None


def why_not_shared(model: Any) -> str | None:
    """Try the shared path against the plain one on a small input; None if they agree.

    Args:
        model: in evaluation mode, with or without peft.

    Returns:
        A few words on why the plain path has to be used.
    """
    import torch

    config = _causal(model).config.get_text_config()
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(config.vocab_size, (count,), generator=draw).tolist()

    prompts = [tokens(9), tokens(5)]
    answers = [[tokens(4), tokens(7)], [tokens(6), tokens(2), tokens(3)]]
    try:
        with torch.no_grad():
            plain, _ = answer_logprobs(model, prompts, answers, 0, shared=False)
            shared, _ = answer_logprobs(model, prompts, answers, 0, shared=True)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"it cannot read such a row ({type(error).__name__})"
    off = (plain - shared).abs().mean().item()
    allowed = 1e-4 if _causal(model).dtype == torch.float32 else 0.05
    return None if off <= allowed else f"its log-probabilities differ by {off:.2g}"


def _causal(model: Any) -> Any:
    """The causal language model inside what wraps it: distributed training, peft."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attention(causal: Any, parts: torch.Tensor) -> torch.Tensor:
    """The mask: earlier tokens of the prompt and of the same answer are seen.

    Padding sees itself and the prompt, for a row of the mask must not be empty; nothing sees it.
    """
    import torch

    length = parts.shape[1]
    seen = (parts[:, :, None] == parts[:, None, :]) | (parts == 0)[:, None, :]
    seen = (seen & torch.ones(length, length, device=parts.device).tril().bool())[:, None]
    if causal.config._attn_implementation != "eager":
        return seen
    hidden = torch.finfo(causal.dtype).min
    return torch.zeros_like(seen, dtype=causal.dtype).masked_fill(~seen, hidden)
