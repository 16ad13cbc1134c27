"""The embedded engine: transformers with peft, adapters switched on one base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any

from macpo_data.chat import Chat
from macpo_data.engines import Completion, Request, Score, ScoreRequest, Voice
from macpo_data.models import Base, load_model, load_tokenizer
from macpo_data.packing import MAX_LOGITS, response_logprobs
from macpo_data.recipe import Engine as Settings
from macpo_data.recipe import digest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class TransformersEngine:
    """Writes with `model.generate` and scores with a forward pass, in batches by length."""

    def __init__(self, base: Base, settings: Settings) -> None:
        """Load the base."""
        from transformers import GenerationConfig

        self.base = base
        self.batch_size = settings.batch_size
        self.model: Any = load_model(base, settings.dtype).eval()
        # The recipe says how to sample; what the base's repository would add is left out.
        self.model.generation_config = GenerationConfig()
        self.tokenizer = load_tokenizer(base)
        self.max_length = int(getattr(self.model.config, "max_position_embeddings", 1 << 30))
        self._chats: dict[str, Chat] = {}
        self._adapters: dict[str, str] = {}

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Group by group, each in batches of like length."""
        for members in _groups(requests):
            voice = requests[members[0]].voice
            chat = self._chat(voice)
            room = self.max_length - requests[members[0]].sampling.max_new_tokens
            prompts = {i: chat.prompt_ids(requests[i].prompt) for i in members}
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
                **how,
            )
        return [_completion(chat, row) for row in out[:, width:].tolist()]

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """Group by group, each in batches of like length."""
        import torch

        for members in _groups(requests):
            voice = requests[members[0]].voice
            chat = self._chat(voice)
            prompts = {i: chat.prompt_ids(requests[i].prompt) for i in members}
            responses = {
                i: chat.response_ids(requests[i].response, requests[i].finished) for i in members
            }
            lengths = {i: len(prompts[i]) + len(responses[i]) for i in members}
            for i in members:
                if lengths[i] > self.max_length:
                    yield i, None
            fitting = [i for i in members if lengths[i] <= self.max_length]
            for batch in self._batches(fitting, [lengths[i] for i in fitting], responses):
                with self._speaking(voice), torch.inference_mode():
                    logprobs, _ = response_logprobs(
                        self.model,
                        [prompts[i] for i in batch],
                        [responses[i] for i in batch],
                        chat.pad_id,
                    )
                for i, row in zip(batch, logprobs.double().tolist(), strict=True):
                    tokens = row[len(row) - len(responses[i]) :]
                    eot = tokens.pop() if requests[i].finished else 0.0
                    yield i, Score(sum(tokens), len(tokens), eot)

    def facts(self) -> dict[str, Any]:
        """Name, device, dtype, and the hash of every chat template that was used."""
        return {
            "engine": "transformers",
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "template_sha256": {name: chat.sha256 for name, chat in self._chats.items()},
        }

    def _batches(
        self,
        members: list[int],
        lengths: list[int],
        responses: dict[int, list[int]] | None = None,
    ) -> Iterator[list[int]]:
        """Cut into batches by length, smaller ones where the logits would not fit."""
        order = [i for _, i in sorted(zip(lengths, members, strict=True))]
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        while order:
            size = min(self.batch_size, len(order))
            if responses is not None:
                longest = max(len(responses[i]) for i in order[:size]) + 1
                size = max(1, min(size, MAX_LOGITS // (longest * vocabulary)))
            yield order[:size]
            order = order[size:]

    def _chat(self, voice: Voice) -> Chat:
        from macpo_data.chat import make_chat

        if voice.chat_template not in self._chats:
            chat = make_chat(self.tokenizer, voice.chat_template, self.base.id)
            self._chats[voice.chat_template] = chat
        return self._chats[voice.chat_template]

    def _speaking(self, voice: Voice) -> AbstractContextManager[None]:
        """Switch to a voice's adapter, or to none."""
        from peft import PeftModel

        if voice.adapter is None:
            return self.model.disable_adapter() if self._adapters else nullcontext()
        if voice.adapter not in self._adapters:
            name = f"adapter{len(self._adapters)}"
            if self._adapters:
                self.model.load_adapter(voice.adapter, adapter_name=name)
            else:
                self.model = PeftModel.from_pretrained(self.model, voice.adapter, adapter_name=name)
            self.model.eval()
            self._adapters[voice.adapter] = name
        self.model.set_adapter(self._adapters[voice.adapter])
        return nullcontext()


def batch_seed(requests: Sequence[Request]) -> int:
    """The seed of a batch follows from those of its requests: one draw serves all of them."""
    return int(digest([request.seed for request in requests]), 16)


def _groups(requests: Sequence[Request] | Sequence[ScoreRequest]) -> Iterator[list[int]]:
    for _, members in groupby(range(len(requests)), key=lambda i: requests[i].group):
        yield list(members)


def _completion(chat: Chat, ids: list[int]) -> Completion:
    """Cut at the first stop token; without one the token limit cut the response."""
    stops = set(chat.stop_ids)
    end = next((n for n, token in enumerate(ids) if token in stops), None)
    if end is None:
        return Completion(chat.decode(ids), "length", len(ids))
    return Completion(chat.decode(ids[:end]), "stop", end + 1)
