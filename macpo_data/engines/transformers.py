"""The embedded engine: transformers with peft; several adapters on one loaded base model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo_data.engines.protocol import (
    Chats,
    Completion,
    Engine,
    Request,
    Score,
    ScoreRequest,
    Voice,
    completion,
)
from macpo_data.models import fits
from macpo_data.models.base import Base, load_model, voice_identity
from macpo_data.models.logprobs import MAX_LOGITS, MAX_MASK, answer_logprobs, why_not_shared, window
from macpo_data.models.worker import Report
from macpo_data.recipe.engine import Engine as Settings
from macpo_data.recipe.section import digest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch


class TransformersEngine(Engine):
    """Writes with `model.generate` and scores with a forward pass, in batches by length."""

    def __init__(self, base: Base, settings: Settings) -> None:
        """Load the base."""
        from transformers import GenerationConfig

        self.base = base
        self.batch_size = settings.batch_size
        self.model: Any = load_model(base, settings.dtype).eval()
        # The recipe says how to sample; what the base's repository would add is left out.
        self.model.generation_config = GenerationConfig()
        self.max_length = int(getattr(self.model.config, "max_position_embeddings", 1 << 30))
        self._chat = Chats(base)
        self._adapters: dict[str, str] = {}
        self._settings = settings
        self._scoring = ""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Group by group, each in batches of like length."""
        for members in _groups(requests):
            voice = requests[members[0]].voice
            chat = self._chat(voice)
            room = self.max_length - requests[members[0]].sampling.max_new_tokens
            prompt_ids = chat.all_prompt_ids([requests[i].prompt for i in members])
            fits.check_ids(self.model, self.base, chat, prompt_ids)
            prompts = dict(zip(members, prompt_ids, strict=True))
            for i in members:
                if len(prompts[i]) > room:
                    yield i, Completion(None, "prompt_too_long", 0)
            fitting = [i for i in members if len(prompts[i]) <= room]
            for batch in self._batches(fitting, [len(prompts[i]) for i in fitting]):
                with self._speaking(voice):
                    texts = self._write([requests[i] for i in batch], [prompts[i] for i in batch])
                yield from zip(batch, texts, strict=True)

    def _write(self, requests: list[Request], prompts: list[list[int]]) -> list[Completion]:
        """One batch."""
        import torch

        sampling, chat = requests[0].sampling, self._chat(requests[0].voice)
        torch.manual_seed(batch_seed(requests))
        width = max(map(len, prompts))
        ids = torch.tensor([[chat.pad_id] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            how = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=chat.stop_ids,
                pad_token_id=chat.pad_id,
                logits_processor=[self._checked(requests[0].voice)],
                **how,
            )
        return [completion(chat, row) for row in out[:, width:].tolist()]

    def _checked(self, voice: Voice) -> Callable[[Any, torch.Tensor], torch.Tensor]:
        """Stops at logits that are no numbers, from which garbage would be drawn, or nothing."""

        def check(ids: Any, logits: torch.Tensor) -> torch.Tensor:
            if not logits.max().isfinite():  # a NaN is the highest of any
                raise fits.no_numbers("logits", self.base, voice.adapter)
            return logits

        return check

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """Group by group, all responses to a prompt together, in batches of like length."""
        import torch

        for members in _groups(requests):
            voice = requests[members[0]].voice
            chat = self._chat(voice)
            own = [requests[i] for i in members]
            prompts, (answers,) = chat.row_ids(
                [r.prompt for r in own],
                [[r.response for r in own]],
                [[r.finished for r in own]],
            )
            fits.check_ids(self.model, self.base, chat, [*prompts, *answers])
            responses = dict(zip(members, answers, strict=True))
            by_prompt: dict[tuple[int, ...], list[int]] = {}
            for i, prompt in zip(members, prompts, strict=True):
                if len(prompt) + len(responses[i]) > self.max_length:
                    yield i, None
                else:
                    by_prompt.setdefault(tuple(prompt), []).append(i)
            lengths = [len(p) + len(responses[i]) for p, own in by_prompt.items() for i in own]
            shared = self._shares(max(lengths, default=0))
            for batch in self._score_batches(by_prompt, responses, shared):
                with self._speaking(voice), torch.inference_mode():
                    logprobs, _ = answer_logprobs(
                        self.model,
                        [list(prompt) for prompt, _ in batch],
                        [[responses[i] for i in own] for _, own in batch],
                        chat.pad_id,
                        shared,
                    )
                scored = [i for _, own in batch for i in own]
                for i, row in zip(scored, logprobs.double().tolist(), strict=True):
                    tokens = row[len(row) - len(responses[i]) :]
                    eot = tokens.pop() if requests[i].finished else 0.0
                    if not math.isfinite(sum(tokens) + eot):
                        raise fits.no_numbers("log-probabilities", self.base, voice.adapter)
                    yield i, Score(sum(tokens), len(tokens), eot)

    def facts(self) -> dict[str, Any]:
        """Name, device, dtype, and the hash of every chat template that was used."""
        return {
            "engine": "transformers",
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "template_sha256": self._chat.sha256,
            **({"scoring": self._scoring} if self._scoring else {}),
        }

    def scored_under(self, voice: Voice) -> dict[str, Any]:
        """The weights, the template, the tokenizer and the numbers that made a score."""
        return voice_identity(self.base, self._chat(voice), voice.adapter, self.model.dtype)

    @cached_property
    def _why_plain(self) -> str | None:
        """Why responses to one prompt do not share it; None if they do."""
        if not self._settings.shared_prompt:
            return "engine.shared_prompt is off"
        return why_not_shared(self.model)

    def _shares(self, longest: int) -> bool:
        """Whether to share prompts among sequences of at most that length."""
        why, limit = self._why_plain, window(self.model)
        if why is None and limit and longest > limit:
            why = f"sequences of {longest} tokens exceed the attention window of {limit}"
        self._scoring = f"one sequence per response: {why}" if why else "shared prompts"
        return why is None

    def _score_batches(
        self,
        by_prompt: dict[tuple[int, ...], list[int]],
        responses: dict[int, list[int]],
        shared: bool,
    ) -> Iterator[list[tuple[tuple[int, ...], list[int]]]]:
        """Cut (prompt, its responses) into batches of like length that fit into memory.

        The plain path reads each response by itself, prompt and all.
        """
        rows = [
            (prompt, part)
            for prompt, own in by_prompt.items()
            for part in (_cut(own, self.batch_size) if shared else [[i] for i in own])
        ]

        def length(row: tuple[tuple[int, ...], list[int]]) -> int:
            return len(row[0]) + sum(len(responses[i]) for i in row[1])

        rows.sort(key=lambda row: (length(row), row[1]))
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        batch: list[tuple[tuple[int, ...], list[int]]] = []
        for row in rows:
            size = sum(len(own) for _, own in [*batch, row])
            if shared:
                fits = (len(batch) + 1) * length(row) ** 2 <= MAX_MASK
            else:  # logits from the end of the shortest prompt on
                shortest = min(len(prompt) for prompt, _ in [*batch, row])
                fits = size * (length(row) - shortest + 1) * vocabulary <= MAX_LOGITS
            if batch and (size > self.batch_size or not fits):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _batches(self, members: list[int], lengths: list[int]) -> list[list[int]]:
        """Cut into batches by length."""
        return _cut([i for _, i in sorted(zip(lengths, members, strict=True))], self.batch_size)

    def _speaking(self, voice: Voice) -> AbstractContextManager[None]:
        """Switch to a voice's adapter, or to none."""
        if voice.adapter is None:
            return self.model.disable_adapter() if self._adapters else nullcontext()
        if voice.adapter not in self._adapters:
            name, folder = f"adapter{len(self._adapters)}", Path(voice.adapter)
            fits.check_adapter(folder, self.base)
            self.model = fits.load_adapter(self.model, folder, self.base, name).eval()
            self._adapters[voice.adapter] = name
        self.model.set_adapter(self._adapters[voice.adapter])
        return nullcontext()


def score(
    report: Report, base: Base, settings: Settings, requests: list[ScoreRequest]
) -> list[Score | None]:
    """Score in a process of one's own."""
    scores = dict(TransformersEngine(base, settings).score(requests))
    return [scores[i] for i in range(len(requests))]


def batch_seed(requests: Sequence[Request]) -> int:
    """The seed of a batch follows from those of its requests: one draw serves all of them."""
    return int(digest([request.seed for request in requests]), 16)


def _groups(requests: Sequence[Request] | Sequence[ScoreRequest]) -> Iterator[list[int]]:
    for _, members in groupby(range(len(requests)), key=lambda i: requests[i].group):
        yield list(members)


def _cut(members: list[int], size: int) -> list[list[int]]:
    return [members[at : at + size] for at in range(0, len(members), size)]
