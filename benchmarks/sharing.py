"""What sharing a prompt saves in training as prompt and vocabulary grow, beside what theory says.

A forward and backward pass over pairs of random tokens, LoRA on a frozen random model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.models import flops, llama
from benchmarks.rows import row
from macpo_data.packing import answer_logprobs

RESPONSE, PAIRS = 96, 4


def main() -> None:
    """One row for each prompt length and vocabulary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    for vocabulary in (4096, 32000):
        config = LoraConfig(target_modules=["q_proj", "v_proj"])
        model: Any = get_peft_model(llama(vocabulary), config)
        for prompt in (32, 128, 512):
            draw = torch.Generator().manual_seed(0)

            def tokens(count: int, draw: Any = draw, top: int = vocabulary) -> list[int]:
                return [int(n) for n in torch.randint(top, (count,), generator=draw)]

            prompts = [tokens(prompt) for _ in range(PAIRS)]
            answers = [[tokens(RESPONSE), tokens(RESPONSE)] for _ in range(PAIRS)]
            seconds: list[list[float]] = [[], []]
            for repeat in range(asked.repeats + 1):
                for shared, times in zip((True, False), seconds, strict=True):
                    begun = time.perf_counter()
                    logprobs, _ = answer_logprobs(model, prompts, answers, 0, shared)
                    torch.autograd.backward(logprobs.sum())
                    if repeat:  # the first warms up
                        times.append(time.perf_counter() - begun)
            ratios = [plain / shared for shared, plain in zip(*seconds, strict=True)]
            text = model.config
            heads = 2 * PAIRS * RESPONSE
            theory = flops(text, [prompt + RESPONSE] * 2 * PAIRS, heads) / flops(
                text, [prompt + 2 * RESPONSE] * PAIRS, heads
            )
            row(
                f"forward and backward of {PAIRS} pairs, prompt {prompt}, responses {RESPONSE}, "
                f"vocabulary {vocabulary}: shared against plain, median of {asked.repeats}",
                f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}); "
                f"operations {theory:.2f}x",
                "python -m benchmarks.sharing",
            )


if __name__ == "__main__":
    main()
