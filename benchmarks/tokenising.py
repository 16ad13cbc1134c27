"""Token ids of HH's pairs of several turns: row by row against all at once, the same ids."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from benchmarks.rows import row
from macpo_data.models.chat import Chat
from macpo_data.models.templates import make_chat

SHARED = Path(__file__).resolve().parents[2] / "shared"
REPEATS = 5
Ids = list[list[int]]


def tokenizers() -> dict[str, Any]:
    """Two real ones, by name."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = str(SHARED / "tokenizers/mistral-7b/tokenizer.json")
    return {
        "gpt2": AutoTokenizer.from_pretrained(SHARED / "tokenizers/gpt2"),
        "mistral-7b": PreTrainedTokenizerFast(
            tokenizer_file=file, bos_token="<s>", eos_token="</s>"
        ),
    }


def one_by_one(chat: Chat, pairs: pl.DataFrame) -> Ids:
    """A call for each prompt and each answer."""
    prompts = [chat.prompt_ids(prompt) for prompt in pairs["prompt"].to_list()]
    return prompts + [chat.response_ids(text, True) for text in pairs["chosen"]]


def at_once(chat: Chat, pairs: pl.DataFrame) -> Ids:
    """A call for all prompts and one for all answers."""
    prompts = chat.all_prompt_ids(pairs["prompt"].to_list())
    return prompts + chat.all_response_ids(pairs["chosen"].to_list(), [True] * len(pairs))


def timed(way: Callable[[Chat, pl.DataFrame], Ids], chat: Chat, pairs: pl.DataFrame) -> float:
    """Rows per second of processor time, which does not tell how many cores share the work."""
    begun = time.process_time()
    way(chat, pairs)
    return len(pairs) / (time.process_time() - begun)


def main() -> None:
    """A row for each tokenizer."""
    pairs = pl.read_parquet(SHARED / "data/hh_harmless_multiturn.parquet")
    for name, tokenizer in tokenizers().items():
        chat = make_chat(tokenizer, "vicuna", name)
        assert one_by_one(chat, pairs) == at_once(chat, pairs)
        rates = [
            (timed(one_by_one, chat, pairs), timed(at_once, chat, pairs)) for _ in range(REPEATS)
        ]
        slow, fast = (median(rate) for rate in zip(*rates, strict=True))
        ratios = sorted(fast / slow for slow, fast in rates)
        row(
            f"tokenise {len(pairs):,} HH prompts of several turns and an answer each, {name}: all "
            f"at once against one by one, median of {REPEATS}",
            f"{median(ratios):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f}), {slow:,.0f} to "
            f"{fast:,.0f} rows per second of processor time, the same ids",
            "python -m benchmarks.tokenising",
        )


if __name__ == "__main__":
    main()
