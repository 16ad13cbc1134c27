"""Tokenises a dataset; what is too long is truncated or dropped, as the recipe says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from macpo_data.errors import DataError
from macpo_data.models.chat import Chat
from macpo_data.models.conversation import Unsayable, table_ids
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
    # Places in each response of tokens that are read and not learned: what tools answered.
    read_only: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    same: int = 0  # pairs left out: their sides are the same, as written and cut
    unsayable: Counter[str] = field(default_factory=Counter)  # rows left out: why, how many
    without_thoughts: int = 0  # rows of whose prompt the template leaves out thoughts

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with one of its responses."""
        sides = self.responses.values()
        return max(len(p) + len(r) for side in sides for p, r in zip(self.prompts, side))  # noqa: B905

    def account(self) -> Iterator[str]:
        """What was cut or left out, a line for each."""
        if self.cut:
            yield f"{self.cut} of {len(self.rows)} rows are cut to train.max_length"
        if self.dropped:
            yield f"{self.dropped} rows are left out: they do not fit into train.max_length"
        if self.same:
            yield f"{self.same} pairs are left out: their sides are the same, as written and cut"
        if self.without_thoughts:
            yield (
                f"{self.without_thoughts} rows are read without the thoughts of earlier turns, "
                "which the chat template leaves out"
            )
        for reason, count in self.unsayable.items():
            yield f"{count} rows are left out: {reason}"

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
    table = frame.rows(named=True)
    ends = [[finished(row, column) for row in table] for column in columns]
    rows = table_ids(chat, table, columns, ends)
    unsayable = Counter(str(row) for row in rows if isinstance(row, Unsayable))
    prompts: list[list[int]] = []
    responses: dict[str, list[list[int]]] = {column: [] for column in columns}
    read_only: dict[str, list[tuple[int, ...]]] = {column: [] for column in columns}
    kept: list[int] = []
    whole: list[bool] = []
    lengths: list[int] = []
    same = without_thoughts = 0
    for index, row in enumerate(rows):
        if isinstance(row, Unsayable):
            continue
        prompt, sides = row.prompt, [side.ids for side in row.sides]
        lengths.append(len(prompt) + max(map(len, sides)))
        fits = lengths[-1] <= settings.max_length
        if not fits:
            fitted = _fit(prompt, sides, chat, settings)
            if fitted is None:
                continue
            prompt, sides = fitted
        if len(sides) > 1 and sides[0] == sides[1]:
            same += 1
            continue
        prompts.append(prompt)
        kept.append(index)
        whole.append(fits)
        without_thoughts += row.cuts_thoughts
        for column, ids, side in zip(columns, sides, row.sides, strict=True):
            responses[column].append(ids)
            read_only[column].append(tuple(at for at in side.read_only if at < len(ids)))
    over = sum(length > settings.max_length for length in lengths)
    lengths.sort()
    if not lengths:
        reason, count = unsayable.most_common(1)[0]
        raise DataError(f"no row can be trained: {reason} ({count} rows)")
    if over > settings.max_truncated * len(frame) or not kept:
        enough = lengths[len(lengths) - 1 - int(settings.max_truncated * len(lengths))]
        equal = f", and {same} pairs are the same after the cut" if same else ""
        raise DataError(
            f"{over} of {len(frame)} rows exceed train.max_length={settings.max_length} tokens, "
            f"and train.max_truncated allows {settings.max_truncated:.0%}{equal}; the longest has "
            f"{lengths[-1]} tokens, train.max_length={enough} would do"
        )
    dropped = len(lengths) - len(kept) - same
    return Encoded(
        prompts,
        responses,
        kept,
        whole,
        cut=whole.count(False),
        dropped=dropped,
        read_only=read_only,
        same=same,
        unsayable=unsayable,
        without_thoughts=without_thoughts,
    )


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
