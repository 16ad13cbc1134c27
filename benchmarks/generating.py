"""Tokens per second of the transformers engine against a bare `model.generate` loop.

Both write the same requests in the same batches with the same seeds, in turn; the texts have to be
the same. The ratio says what the engine costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.models import add_model_options, dialogues, model_flags, save_base
from benchmarks.rows import clock, row
from macpo_data.engines.protocol import Request, Voice
from macpo_data.engines.transformers import TransformersEngine, batch_seed
from macpo_data.models.base import Base
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.world.grammar import examples
from macpo_run.training import pretrain_bases

REQUESTS, BATCH, REPEATS = 256, 64, 5
BASE = "strong"
SAMPLING = Sampling(max_new_tokens=56)


def bare(engine: TransformersEngine, batches: list[tuple[Any, Any, int]], chat: Any) -> list[str]:
    """What a person would write by hand: the ids of each batch, padded beforehand."""
    import torch

    texts = []
    for ids, mask, seed in batches:
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = engine.model.generate(
                input_ids=ids.to(engine.model.device),
                attention_mask=mask.to(engine.model.device),
                do_sample=True,
                temperature=SAMPLING.temperature,
                top_p=SAMPLING.top_p,
                top_k=SAMPLING.top_k,
                max_new_tokens=SAMPLING.max_new_tokens,
                eos_token_id=chat.stop_ids,
                pad_token_id=chat.pad_id,
            )
        texts += chat.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def main() -> None:
    """Five rounds of both in turn; the median of the ratios."""
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.size == "tiny":
            pretrain_bases([BASE], lambda done, total, note: None)
            base = Base(f"world:{BASE}", None)
            prompts: list[Any] = [example.prompt for example in examples("task")[:REQUESTS]]
        else:
            base = Base(str(save_base(Path(folder), asked.size, asked.dtype)), None)
            prompts = dialogues(REQUESTS)["prompt"].to_list()
        measure(asked, TransformersEngine(base, Engine(batch_size=BATCH)), prompts)


def measure(asked: argparse.Namespace, engine: TransformersEngine, prompts: list[Any]) -> None:
    """Print the row."""
    import torch

    voice = Voice(None, "tokenizer", "base")
    requests = [
        Request(voice, prompt, SAMPLING, seed, "all") for seed, prompt in enumerate(prompts)
    ]
    chat = engine._chat(voice)
    ids = [chat.prompt_ids(request.prompt) for request in requests]
    order = sorted(range(REQUESTS), key=lambda i: (len(ids[i]), i))
    batches = []
    for at in range(0, REQUESTS, BATCH):
        rows = [ids[i] for i in order[at : at + BATCH]]
        width = max(map(len, rows))
        padded = torch.tensor([[chat.pad_id] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        seed = batch_seed([requests[i] for i in order[at : at + BATCH]])
        batches.append((padded, mask, seed))
    ratios, rates = [], []
    for repeat in range(REPEATS + 1):
        begun = clock()
        done = dict(engine.generate(requests))
        ours = clock() - begun
        begun = clock()
        texts = bare(engine, batches, chat)
        theirs = clock() - begun
        assert [done[i].text for i in order] == [text.strip() for text in texts]
        if repeat:  # the first warms up
            ratios.append(theirs / ours)
            rates.append(sum(c.num_tokens for c in done.values()) / ours)
    row(
        f"transformers engine against bare `model.generate`, {REQUESTS} requests, batch {BATCH}, "
        f"{f'{BASE} base' if asked.size == 'tiny' else f'{asked.size} in {asked.dtype}'}",
        f"{statistics.median(ratios):.2f}x tokens/s ({min(ratios):.2f}-{max(ratios):.2f}), "
        f"{statistics.median(rates):,.0f} tokens/s",
        f"python -m benchmarks.generating{model_flags(asked.size, asked.dtype)}",
    )


if __name__ == "__main__":
    main()
