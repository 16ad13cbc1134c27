"""Tokenises a dataset; what is too long is truncated or dropped, as the recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from macpo_data.errors import DataError
from macpo_data.models.chat import Chat
from macpo_data.recipe.training import Train


@dataclass(frozen=True)
class Encoded:
    """Token ids of a dataset: a prompt and its responses per row."""

    prompts: list[list[int]]
    responses: dict[str, list[list[int]]]
    rows: list[int]  # which row of the dataset each one is
    whole: list[bool]  # nothing of it was cut
    cut: int  # rows of which max_length cut something
    dropped: int  # rows that max_length leaves no room for

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with one of its responses."""
        sides = self.responses.values()
        return max(len(p) + len(r) for side in sides for p, r in zip(self.prompts, side))  # noqa: B905

    @property
    def tokens(self) -> int:
        """Tokens of all sequences, each prompt counted with each of its responses."""
        prompts = sum(map(len, self.prompts)) * len(self.responses)
        return prompts + sum(len(r) for side in self.responses.values() for r in side)


def encode(frame: pl.DataFrame, chat: Chat, columns: list[str], settings: Train) -> Encoded:
    """Tokenise a dataset's prompts and the named response columns.

    Where prompt and response exceed `max_length`, `keep_start` cuts the response's end (a row whose
    prompt leaves no room is left out), `keep_end` cuts the prompt's beginning, by as much as its
    longest response needs, and `drop` leaves the row out.

    Raises:
        DataError: there is no row, or more of them do not fit than `max_truncated` allows.
    """
    if frame.is_empty():
        raise DataError("the dataset has no rows; look at its dropped.parquet for the reasons")
    prompts: list[list[int]] = []
    responses: dict[str, list[list[int]]] = {column: [] for column in columns}
    rows: list[int] = []
    whole: list[bool] = []
    lengths: list[int] = []
    table = frame.rows(named=True)
    every = [chat.all_prompt_ids([row["prompt"] for row in table])]
    every += [
        chat.all_response_ids([row[c] for row in table], [finished(row, c) for row in table])
        for c in columns
    ]
    for index, (prompt, *sides) in enumerate(zip(*every, strict=True)):
        lengths.append(len(prompt) + max(map(len, sides)))
        fits = lengths[-1] <= settings.max_length
        if not fits:
            fitted = _fit(prompt, sides, chat, settings)
            if fitted is None:
                continue
            prompt, sides = fitted
        prompts.append(prompt)
        rows.append(index)
        whole.append(fits)
        for column, ids in zip(columns, sides, strict=True):
            responses[column].append(ids)
    over = sum(length > settings.max_length for length in lengths)
    lengths.sort()
    if over > settings.max_truncated * len(frame) or not rows:
        enough = lengths[len(lengths) - 1 - int(settings.max_truncated * len(lengths))]
        raise DataError(
            f"{over} of {len(frame)} rows exceed train.max_length={settings.max_length} tokens, "
            f"and train.max_truncated allows {settings.max_truncated:.0%}; the longest has "
            f"{lengths[-1]} tokens, train.max_length={enough} would do"
        )
    return Encoded(prompts, responses, rows, whole, whole.count(False), len(frame) - len(rows))


def _fit(
    prompt: list[int], sides: list[list[int]], chat: Chat, settings: Train
) -> tuple[list[int], list[list[int]]] | None:
    """Cut to `max_length`; None where the row has to go."""
    if settings.truncation == "keep_start":
        room = settings.max_length - len(prompt)
        return (prompt, [ids[:room] for ids in sides]) if room > 0 else None
    if settings.truncation == "keep_end":
        first = 1 if prompt[0] == chat.tokenizer.bos_token_id else 0
        room = settings.max_length - max(map(len, sides)) - first
        return (prompt[:first] + prompt[-room:], sides) if room > 0 else None
    return None


def finished(row: dict[str, Any], column: str) -> bool:
    """Whether a response ends by itself, so that its end-of-turn token is part of it."""
    return row.get(f"{column}_finish_reason") != "length"
