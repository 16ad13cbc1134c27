"""The pairs and test answers that the report page shows, within a limit on its size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from macpo_data.evaluation.verdict import Rows
from macpo_data.plan import Plan, Step
from macpo_data.schema import SCORES
from macpo_data.store.store import Store
from macpo_data.text import json_number

PAIRS = 5000  # on the page at most, over all datasets
ANSWERED = 100  # test prompts at most whose answers are shown
TEXT_BYTES = 7_500_000  # of all texts at most, so that the page stays below 10 MB
CLIP = 8000  # characters of one text
SIDE = ("agent", "finish_reason", *SCORES)
SIDES = [f"{s}_{n}" for s in ("chosen", "rejected") for n in ("text", *SIDE)]
COLUMNS = ["recipe", "round", "learner", "id", "prompt", *SIDES, "others"]


@dataclass
class Texts:
    """Every text once; pairs and answers hold its number."""

    numbers: dict[str, int] = field(default_factory=dict)
    size: int = 0  # bytes on the page

    def add(self, text: str | None) -> int | None:
        """The number of a text, which is shortened where it is very long."""
        if text is None:
            return None
        if len(text) > CLIP:
            text = f"{text[:CLIP]} … ({len(text) - CLIP:,} more characters)"
        if text not in self.numbers:
            self.numbers[text] = len(self.numbers)
            self.size += len(inline_json(text).encode())
        return self.numbers[text]


class Dataset(NamedTuple):
    """One finished gen step; of its rows those that a page may show."""

    step: Step
    pairs: pl.DataFrame
    candidates: pl.DataFrame


def inline_json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever its strings say."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def cut(data: Dataset) -> Dataset:
    """A draw of the pairs with their candidates; the same prompts in every dataset of a part."""
    # A prompt's id is a hash, so that its order is a draw.
    pairs = data.pairs.sort("prompt_id").head(PAIRS)
    others = data.candidates.filter(~pl.col("selected"))
    return Dataset(data.step, pairs, others.join(pairs, on="prompt_id", how="semi"))


def draw(shown: list[list[Dataset]], texts: Texts) -> Iterator[list[Any]]:
    """Rows of pairs, in turns from every dataset until the page is full."""
    rows = [_rows(n, data, texts) for n, datasets in enumerate(shown) for data in datasets]
    count = 0
    while rows:
        for each in list(rows):
            if count >= PAIRS or texts.size > TEXT_BYTES:
                return
            if (row := next(each, None)) is None:
                rows.remove(each)
            else:
                count += 1
                yield row


def _rows(recipe: int, data: Dataset, texts: Texts) -> Iterator[list[Any]]:
    step, _, candidates = data
    others: dict[str, list[dict[str, Any]]] = {}
    for row in candidates.iter_rows(named=True):
        others.setdefault(row["prompt_id"], []).append(row)
    for pair in data.pairs.iter_rows(named=True):
        sides = [
            value
            for side in ("chosen", "rejected")
            for value in (
                texts.add(pair[side]),
                *(json_number(pair[f"{side}_{name}"]) for name in SIDE),
            )
        ]
        # What was not chosen gives way where space is short.
        beside = (
            []
            if texts.size > TEXT_BYTES / 2
            else [
                [
                    o["agent"],
                    texts.add(o["response"]),
                    json_number(o["perplexity"]),
                    o["rank"],
                    o["reason"],
                ]
                for o in others.get(pair["prompt_id"], [])
            ]
        )
        prompt = [[m["role"], texts.add(m["content"])] for m in pair["prompt"]]
        yield [recipe, step.round, step.learner, pair["prompt_id"][:12], prompt, *sides, beside]


def answers(plan: Plan, store: Store, responses: pl.DataFrame, texts: Texts) -> Rows:
    """What each policy answered to some of the test prompts; of several answers the first."""
    responses = responses.filter(draw=0)
    if responses.is_empty():
        return []
    prompts = store.read(plan.prompts_name, "test.parquet").sort("prompt_id").head(ANSWERED)
    with_prompts = responses.join(prompts.select("prompt_id", "prompt"), on="prompt_id")
    by_prompt: dict[str, dict[str, Any]] = {}
    for row in with_prompts.sort("prompt_id", maintain_order=True).iter_rows(named=True):
        if texts.size > TEXT_BYTES / 4:
            break
        prompt = [[m["role"], texts.add(m["content"])] for m in row["prompt"]]
        entry = by_prompt.setdefault(row["prompt_id"], {"prompt": prompt, "answers": []})
        values = {m: json_number(row[m]) for m in ("gold", "reward") if m in row}
        who = {k: row[k] for k in ("agent", "behavior", "round", "finish_reason")}
        entry["answers"].append({**who, "text": texts.add(row["response"]), "scores": values})
    return list(by_prompt.values())
