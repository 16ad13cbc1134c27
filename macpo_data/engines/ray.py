"""vLLM on a Ray cluster: Ray Data's batch inference, with the configured number of replicas.

The cluster that RAY_ADDRESS names is used as it is; without one, Ray starts on this machine. All
machines of a cluster need the base, and the run's folder under the same path.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from macpo_data.engines import vllm_settings as single
from macpo_data.engines.protocol import (
    Chats,
    Completion,
    Engine,
    Request,
    Score,
    ScoreRequest,
    completion,
)
from macpo_data.errors import ModelError
from macpo_data.models.base import Base
from macpo_data.recipe.engine import Engine as Settings


class RayEngine(Engine):
    """Writes; scoring is left to the other engines."""

    def __init__(self, base: Base, settings: Settings) -> None:
        """Ray starts with the first requests."""
        single.set_environment()
        self.base = base
        self._settings = settings
        self._dtype = single.saved_dtype(base) if settings.dtype == "auto" else settings.dtype
        self._chat = Chats(base)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """As Ray hands batches back, in whatever order.

        Raises:
            ModelError: vLLM cannot load one of the adapters.
        """
        rows, limit = [], self._settings.vllm.max_model_len or single.max_length(self.base)
        for i, request in enumerate(requests):
            chat = self._chat(request.voice)
            prompt = chat.prompt_ids(request.prompt)
            if len(prompt) + request.sampling.max_new_tokens > limit:
                yield i, Completion(None, "prompt_too_long", 0)
            else:
                params = single.sampling_arguments(request, chat.stop_ids)
                model = request.voice.adapter or self.base.source
                rows.append(
                    {
                        "index": i,
                        "model": model,
                        "tokenized_prompt": prompt,
                        "sampling_params": params,
                    }
                )
        for i, ids in self._infer(rows) if rows else ():
            yield i, completion(self._chat(requests[i].voice), ids)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """Ray Data has no log-probs of a prompt; `engines.pick` never comes here to score."""
        if requests:
            raise ModelError("engine.name=ray cannot score; set score.engine=forward")
        return iter(())

    def facts(self) -> dict[str, Any]:
        """Name, dtype, copies, and the hash of every chat template that was used."""
        return {
            "engine": "ray",
            "dtype": self._dtype,
            "data_parallel": self._settings.vllm.data_parallel,
            "template_sha256": self._chat.sha256,
        }

    def _infer(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, list[int]]]:
        """Yield (index, token ids of the response)."""
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig
        from vllm.platforms import current_platform

        knobs = self._settings.vllm
        adapters = {row["model"] for row in rows} - {self.base.source}
        shape = single.Shape(self.base, len(adapters), single.lora_rank(adapters), scoring=False)
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        for name in ("ray", "ray.data"):  # which set their own levels once more
            logging.getLogger(name).setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        config = vLLMEngineProcessorConfig(
            model_source=self.base.source,
            engine_kwargs=single.engine_arguments(shape, self._settings, self._dtype),
            runtime_env={"env_vars": {name: os.environ[name] for name in single.ENVIRONMENT}},
            concurrency=(knobs.data_parallel, knobs.data_parallel),
            batch_size=min(self._settings.batch_size, len(rows)),
            placement_group_config={"bundles": [{"CPU": 1}]} if current_platform.is_cpu() else None,
            log_engine_metrics=False,  # those want Ray's serve extra
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        infer = build_processor(
            config,
            postprocess=lambda row: {"index": row["index"], "ids": row["generated_tokens"]},
        )
        try:
            for row in infer(ray.data.from_items(rows)).iter_rows():
                yield int(row["index"]), [int(token) for token in row["ids"]]
        except ray.exceptions.RayError as error:
            # Above it stands what happened on the way through the cluster.
            reason = str(error).strip().split("\n")[-1]
            raise ModelError(
                f"Ray cannot serve {self.base.id}: {reason}; change engine.vllm or "
                "engine.quantization, or set engine.name=vllm"
            ) from None
