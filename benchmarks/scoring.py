"""Score K responses to each prompt in one pass, against one sequence per response.

All run in turn on the same requests: real prompts of several turns, responses drawn from the same
data. The scores have to agree. Where vLLM is installed, its prompt_logprobs are measured as well,
the start of its engine left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.models import add_model_options, dialogues, model_flags, model_words, save_base
from benchmarks.rows import clock, forget_peak, peak_mib, row
from macpo_data.engines.protocol import Score, ScoreRequest, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.models.base import Base
from macpo_data.recipe.engine import Engine

Scorer = Callable[[list[ScoreRequest]], Iterable[tuple[int, Score | None]]]


def vllm_scorer(base: Base) -> Scorer:
    """Scores by vLLM's prompt_logprobs on the token ids that the forward passes read."""
    from macpo_data.engines import vllm, vllm_settings
    from macpo_data.models.base import load_chat

    vllm_settings.set_environment()
    writer = vllm.VLLMEngine(base, Engine(dtype="float32"))
    engine = writer._started(vllm_settings.Shape(base, 0, 0, True))
    chat = load_chat(base, "tokenizer")

    def score(requests: list[ScoreRequest]) -> Iterable[tuple[int, Score | None]]:
        prompts = [chat.prompt_ids(r.prompt) for r in requests]
        ids = [p + chat.response_ids(r.response, True) for p, r in zip(prompts, requests)]  # noqa: B905
        asked = [(i, each, vllm._reading(), requests[i].voice) for i, each in enumerate(ids)]
        for i, output in writer._run(engine, asked):
            yield i, vllm._score(output, len(prompts[i]), True)

    return score


def main() -> None:
    """One row for each K."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    add_model_options(parser)
    asked = parser.parse_args()
    cuda = torch.cuda.is_available()
    frame = dialogues(asked.prompts)
    texts = frame["chosen"].to_list() + frame["rejected"].to_list()
    with tempfile.TemporaryDirectory() as folder:
        base = Base(str(save_base(Path(folder), asked.size, asked.dtype)), None)
        scorers: dict[str, Scorer] = {
            name: TransformersEngine(
                base,
                Engine(batch_size=24, dtype=asked.dtype, shared_prompt=name == "shared prompt"),
            ).score
            for name in ("shared prompt", "plain")
        }
        if find_spec("vllm"):
            scorers["vLLM's prompt_logprobs"] = vllm_scorer(base)
        for answers in (3, 8):
            requests = [
                ScoreRequest(
                    Voice(None, "tokenizer", "base"),
                    prompt,
                    texts[(n + 7 * k) % len(texts)],
                    True,
                    "group",
                )
                for n, prompt in enumerate(frame["prompt"].to_list())
                for k in range(answers)
            ]
            seconds: dict[str, list[float]] = {name: [] for name in scorers}
            peaks: dict[str, float] = {}
            for repeat in range(asked.repeats + 1):
                scored = {}
                for name, score in scorers.items():
                    forget_peak()
                    begun = clock()
                    scored[name] = dict(score(requests))
                    if repeat:  # the first warms up
                        seconds[name].append(clock() - begun)
                    peaks[name] = peak_mib()
            ours, fast = scored["shared prompt"], seconds["shared prompt"]
            for name in [*scorers][1:]:
                pairs = [(ours[i], scored[name][i]) for i in range(len(requests))]
                apart = max(abs(a.sum_logprob - b.sum_logprob) for a, b in pairs if a and b)
                memory = f", peaks {peaks['shared prompt']:,.0f} and {peaks[name]:,.0f} MiB"
                ratios = [other / shared for shared, other in zip(fast, seconds[name], strict=True)]
                row(
                    f"score {answers} responses to each of {asked.prompts} HH prompts of several "
                    f"turns{model_words(asked.size, asked.dtype)}, shared prompt against {name}, "
                    f"median of {asked.repeats}",
                    f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}), "
                    f"{len(requests) / statistics.median(fast):.1f} responses/s, "
                    f"largest difference {apart:.1e} nats{memory if cuda else ''}",
                    f"python -m benchmarks.scoring{model_flags(asked.size, asked.dtype)}",
                )


if __name__ == "__main__":
    main()
