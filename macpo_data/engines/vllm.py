"""The vLLM engine: a base and all its adapters in one batch, from token ids to token ids.

vLLM runs inside this process. A core in a process of its own, its default, outlives a parent that
was killed, and goes on holding the GPU's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

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
from macpo_data.errors import ModelError, first_line
from macpo_data.models import merge
from macpo_data.models.base import Base, is_folder, voice_identity
from macpo_data.models.worker import Worker
from macpo_data.recipe import Engine as Settings

if TYPE_CHECKING:
    from vllm import LLMEngine, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several processes share the cores
}
CPU_CACHE = 1 << 30  # bytes of KV cache on a CPU, where a share of all memory would be too much
CHECKED = 8  # responses of each voice that a forward pass scores as well
TOLERANCE = {"float32": 0.001, "bfloat16": 0.05, "float16": 0.02}  # nats per token


@dataclass(frozen=True)
class Shape:
    """What a running engine cannot change."""

    base: Base
    slots: int  # adapters that share a batch
    rank: int  # of vLLM's list, at least that of each adapter
    scoring: bool

    def fits(self, into: Shape) -> bool:
        """Whether a running engine serves what needs this one."""
        same = self.base == into.base and self.scoring == into.scoring
        # Without adapters, one that needs none is the quicker one.
        holds = self.slots <= into.slots and self.rank <= into.rank
        return same and holds and bool(self.slots) == bool(into.slots)


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
        """First come, first served, so that shards fill up one after another."""
        for engine, members in self._serve([r.voice.adapter for r in requests]):
            limit = engine.vllm_config.model_config.max_model_len
            asked = []
            for i in members:
                chat = self._chat(requests[i].voice)
                prompt, stops = chat.prompt_ids(requests[i].prompt), chat.stop_ids
                if len(prompt) + requests[i].sampling.max_new_tokens > limit:
                    yield i, Completion(None, "prompt_too_long", 0)
                else:
                    asked.append((i, prompt, _writing(requests[i], stops), requests[i].voice))
            for i, output in self._run(engine, asked):
                ids = list(output.outputs[0].token_ids)
                yield i, completion(self._chat(requests[i].voice), ids)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """By `prompt_logprobs`; nothing is told before a sample agrees with forward passes.

        Raises:
            ModelError: it does not.
        """
        sample = _sample(requests)
        forward = self._forward([requests[i] for i in sample])
        known = dict(zip(sample, forward, strict=True))
        differences = []
        for engine, members in self._serve([r.voice.adapter for r in requests], scoring=True):
            limit = engine.vllm_config.model_config.max_model_len
            asked, prompts = [], {}
            for i in sorted(members, key=lambda i: i not in known):
                chat = self._chat(requests[i].voice)
                prompts[i] = prompt = chat.prompt_ids(requests[i].prompt)
                response = chat.response_ids(requests[i].response, requests[i].finished)
                if len(prompt) + len(response) >= limit:  # vLLM always writes one token more
                    yield i, None
                else:
                    asked.append((i, prompt + response, _reading(), requests[i].voice))
            unseen = {i for i, *_ in asked if i in known}
            held = []
            for i, output in self._run(engine, asked):
                score = _score(output, len(prompts[i]), requests[i].finished)
                held.append((i, score))
                if i in unseen and (other := known[i]):
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
        self, engine: LLMEngine, asked: list[tuple[int, list[int], SamplingParams, Voice]]
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Yield (index, output) as requests finish."""
        for i, ids, params, voice in asked:
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
        with closing(Worker(self.base.id)) as worker:
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
                f"vLLM cannot serve {self.base.id}: {_reason(error)}; change engine.vllm or "
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
                raise _refusal(adapter, error) from None
            self._loras[adapter] = lora
        return engine


def set_environment() -> None:
    """Before vLLM is imported; what a person set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


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


def engine_arguments(shape: Shape, settings: Settings, dtype: str) -> dict[str, Any]:
    """What vLLM is told besides the model."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    knobs, base = settings.vllm, shape.base
    options: dict[str, Any] = {}
    if knobs.memory is not None:
        options["gpu_memory_utilization"] = knobs.memory
    elif on_cpu and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        options["kv_cache_memory_bytes"] = CPU_CACHE
    if on_cpu:  # vllm-cpu 0.32 dies of a seeded request whose prompt is read in two steps
        options["enable_chunked_prefill"] = False
    if shape.slots:
        # vllm-cpu 0.32 reads slot -1, the last one, for requests without an adapter: it stays free.
        options |= {"max_loras": shape.slots + on_cpu, "max_lora_rank": shape.rank}
    return options | {
        "revision": None if is_folder(base.source) else base.revision,
        "trust_remote_code": base.trust_remote_code,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # the recipe says how to sample, not the repository
        "dtype": dtype,
        "quantization": settings.quantization,
        "max_model_len": knobs.max_model_len,
        "tensor_parallel_size": knobs.tensor_parallel,
        "pipeline_parallel_size": knobs.pipeline_parallel,
        "enforce_eager": on_cpu if knobs.enforce_eager is None else knobs.enforce_eager,
        "enable_lora": bool(shape.slots),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def sampling_arguments(request: Request, stops: list[int]) -> dict[str, Any]:
    """How vLLM writes one response."""
    sampling = request.sampling
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": stops,
        "seed": request.seed,
        "detokenize": False,
    }


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


def saved_dtype(base: Base) -> str:
    """The numbers in which a base was saved; vLLM's own auto would halve float32."""
    return str(_config(base).dtype or "float32").removeprefix("torch.")


def max_length(base: Base) -> int:
    """Tokens of prompt and response that a base allows."""
    return int(getattr(_config(base), "max_position_embeddings", 1 << 30))


def _config(base: Base) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        base.source,
        revision=None if is_folder(base.source) else base.revision,
        trust_remote_code=base.trust_remote_code,
    )


def lora_rank(adapters: set[str]) -> int:
    """The smallest rank of vLLM's fixed list that holds all these adapters; 0 for none.

    Raises:
        ModelError: vLLM cannot load one of them; nothing is started yet.
    """
    if not adapters:
        return 0
    from vllm.config.lora import LoRAConfig, MaxLoRARanks
    from vllm.lora.peft_helper import PEFTHelper

    allowed = sorted(get_args(MaxLoRARanks))
    highest = 0
    for adapter in sorted(adapters):
        try:
            helper = PEFTHelper.from_local_dir(adapter, max_position_embeddings=None)
            helper.validate_legal(LoRAConfig(max_lora_rank=allowed[-1]))
        except (ValueError, OSError) as error:
            raise _refusal(adapter, error) from None
        highest = max(highest, helper.r, *helper.rank_pattern.values())
    return next(int(rank) for rank in allowed if rank >= highest)


def _reason(error: Exception) -> str:
    """Why vLLM refuses. It checks by pydantic, whose first line only counts the mistakes."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ").rstrip(".")
    return first_line(error)


def _refusal(adapter: str, error: Exception) -> ModelError:
    return ModelError(
        f"vLLM cannot load the adapter {adapter}: {first_line(error)}; set engine.adapters=merge, "
        "or engine.name=transformers"
    )
