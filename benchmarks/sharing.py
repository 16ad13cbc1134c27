"""What sharing a prompt saves in training as prompt and vocabulary grow, beside what theory says.

A forward and backward pass over pairs of random tokens, LoRA on a frozen random model.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.models import (
    SHAPES,
    add_model_options,
    flops,
    llama,
    model_flags,
    model_words,
    qwen,
)
from benchmarks.rows import clock, forget_peak, peak_mib, row
from macpo_data.models.logprobs import answer_logprobs

RESPONSE, PAIRS = 96, 4


def main() -> None:
    """One row for each prompt length and vocabulary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 128, 512])
    add_model_options(parser)
    asked = parser.parse_args()
    tiny = asked.size == "tiny"
    for vocabulary in (4096, 32000) if tiny else (SHAPES[asked.size].vocabulary,):
        config = LoraConfig(target_modules=["q_proj", "v_proj"])
        plain = llama(vocabulary) if tiny else qwen(SHAPES[asked.size], asked.dtype)
        model: Any = get_peft_model(plain.train(), config)
        for prompt in asked.prompts:
            draw = torch.Generator().manual_seed(0)

            def tokens(count: int, draw: Any = draw, top: int = vocabulary) -> list[int]:
                return [int(n) for n in torch.randint(top, (count,), generator=draw)]

            prompts = [tokens(prompt) for _ in range(PAIRS)]
            answers = [[tokens(RESPONSE), tokens(RESPONSE)] for _ in range(PAIRS)]
            seconds: list[list[float]] = [[], []]
            peaks = [0.0, 0.0]
            for repeat in range(asked.repeats + 1):
                for way, times in enumerate(seconds):
                    forget_peak()
                    begun = clock()
                    logprobs, _ = answer_logprobs(model, prompts, answers, 0, shared=way == 0)
                    torch.autograd.backward(logprobs.sum())
                    if repeat:  # the first warms up
                        times.append(clock() - begun)
                    peaks[way] = peak_mib()
            ratios = [plain / shared for shared, plain in zip(*seconds, strict=True)]
            text = model.config
            heads = 2 * PAIRS * RESPONSE
            theory = flops(text, [prompt + RESPONSE] * 2 * PAIRS, heads) / flops(
                text, [prompt + 2 * RESPONSE] * PAIRS, heads
            )
            memory = f"; peaks {peaks[0]:,.0f} and {peaks[1]:,.0f} MiB" if not tiny else ""
            row(
                f"forward and backward of {PAIRS} pairs, prompt {prompt}, responses {RESPONSE}, "
                f"vocabulary {vocabulary}{model_words(asked.size, asked.dtype)}: shared against "
                f"plain, median of {asked.repeats}",
                f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}); "
                f"operations {theory:.2f}x{memory}",
                f"python -m benchmarks.sharing{model_flags(asked.size, asked.dtype)}",
            )


if __name__ == "__main__":
    main()
