"""Sections engine and score: the inference engine for generation and for scoring."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from macpo_data.recipe.section import KNOB, LATER, Count, Section


class VLLM(Section):
    """How vLLM uses the hardware."""

    memory: Annotated[float | None, Field(gt=0.0, le=1.0)] = None
    """Share of the GPU's memory; null: vLLM's own choice, and 1 GiB for the cache on a CPU."""
    tensor_parallel: Count = 1
    """GPUs that share each layer."""
    pipeline_parallel: Count = 1
    """GPUs that share the layers out."""
    data_parallel: Count = 1
    """Copies side by side, with engine.name ray."""
    max_model_len: Count | None = None
    """Tokens of prompt and answer; null: what the base allows."""
    enforce_eager: bool | None = None
    """Compile nothing; null: on a CPU only."""


class Engine(Section):
    """What runs the models that write and score."""

    name: Annotated[Literal["auto", "transformers", "vllm", "ray", "fake"], KNOB] = "auto"
    """auto: vllm where it is installed and there is a GPU, else transformers. ray: copies of vllm
    side by side. fake: answers at once, without a model, for endpoints too."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """In which numbers models run; auto: as the base was saved."""
    quantization: Annotated[str | None, LATER] = None
    """As vLLM names it, such as fp8; null: none."""
    adapters: Annotated[Literal["lora", "merge"], KNOB] = "lora"
    """lora: vLLM serves a base and all its adapters in one batch. merge: a copy of the base for
    each adapter in turn, in bfloat16, which pays off for long answers of few policies."""
    vllm: Annotated[VLLM, KNOB] = VLLM()
    """How vLLM uses the hardware."""
    batch_size: Annotated[Count, KNOB] = 64
    """Sequences per forward pass."""
    shared_prompt: Annotated[bool, KNOB] = True
    """Score all answers to a prompt in one pass; where a model cannot, macpo says so."""
    shard_size: Annotated[Count, KNOB] = 256
    """Prompts per file: what a killed `macpo gen` may cost."""
    keep_loaded: Annotated[Count, KNOB] = 1
    """Base models in memory at once."""

    @model_validator(mode="after")
    def _can_copy(self) -> Engine:
        if self.vllm.data_parallel > 1 and self.name != "ray":
            raise ValueError("vllm.data_parallel above 1 needs engine.name=ray")
        if self.name == "ray" and self.adapters == "merge":
            raise ValueError("adapters=merge needs engine.name=vllm")
        if self.quantization and self.name == "transformers":
            raise ValueError("quantization needs engine.name=vllm or ray")
        return self

    def identity(self) -> dict[str, Any]:
        """Which real engine wrote is no identity, but a fake one is."""
        return super().identity() | {"fake": self.name == "fake"}


class Score(Section):
    """What computes how likely a policy finds a given response."""

    engine: Literal["forward", "vllm"] = "forward"
    """forward: forward passes. vllm: its prompt_logprobs, a sample of which forward passes
    check."""
