"""The common row format of all sources: prompt, chosen, rejected, and why a row is unusable.

    prompt: messages   chosen: text   rejected: text   reason: text, null where the row is usable

Each source's file brings its own form into this one with the helpers here.
"""

from __future__ import annotations

import polars as pl

from macpo_data.errors import DataError
from macpo_data.recipe.data import Columns
from macpo_data.schema import MESSAGES

# What polars makes of messages in a column where another row holds plain text.
_FLATTENED = r'^\[?\{"(role|content)": '


def rows(raw: pl.DataFrame, columns: Columns, path: str) -> pl.DataFrame:
    """A prompt and two answers, each a text or a conversation that ends in the answer.

    A conversation brings its prompt with it: all its turns but the last. A dataset may lack both
    answers; its prompts alone are enough for d2 and test.

    Args:
        raw: the dataset as it is.
        columns: which of its columns hold what.
        path: of the dataset, for errors.

    Raises:
        DataError: a column is missing, or is neither text nor messages.
    """
    sides = {"chosen": columns.chosen, "rejected": columns.rejected}
    wanted = [name for name in sides.values() if name]
    has_prompt = columns.prompt in raw.columns
    if has_prompt and not set(wanted) & set(raw.columns):
        wanted = []  # a set of prompts alone
    # Only conversations bring their prompt with them.
    implicit = wanted and all(raw.schema.get(n, pl.List) == pl.List for n in wanted)
    need(raw, wanted if implicit else [columns.prompt, *wanted], path)

    nothing = pl.Series([None] * len(raw), dtype=MESSAGES)
    turns = {s: messages(raw, n, "assistant", path) for s, n in sides.items() if n and n in wanted}
    turns["prompt"] = messages(raw, columns.prompt, "user", path) if has_prompt else nothing
    frame = pl.DataFrame({name: turns.get(name, nothing) for name in ("prompt", *sides)})
    # No answer is fine where the source has none; where it has some, a missing one is empty.
    blank = {side: "" if side in turns else None for side in sides}
    return _split(frame, blank)


def _split(frame: pl.DataFrame, blank: dict[str, str | None]) -> pl.DataFrame:
    """Two conversations to the prompt that they share and the answers that they end in.

    Args:
        frame: prompt, chosen and rejected, all messages.
        blank: for each side, the answer where there is no conversation.
    """
    last = {side: pl.col(side).list.last().struct for side in blank}
    chosen_lead, rejected_lead = (
        pl.when(pl.col(s).list.len() > 1).then(pl.col(s).list.head(pl.col(s).list.len() - 1))
        for s in blank
    )
    wrong_end = pl.any_horizontal(last[s].field("role") != "assistant" for s in blank)
    answers = {
        side: pl.coalesce(last[side].field("content"), pl.lit(text, dtype=pl.String))
        for side, text in blank.items()
    }
    return frame.select(
        prompt=pl.coalesce(chosen_lead, rejected_lead, "prompt"),
        **answers,
        reason=pl.when(chosen_lead.ne_missing(rejected_lead))
        .then(pl.lit("prompt_differs"))
        .when(wrong_end)
        .then(pl.lit("not_alternating")),
    )


def messages(raw: pl.DataFrame, name: str, role: str, path: str) -> pl.Series:
    """A column as messages without surrounding white space; text is one turn of `role`.

    Raises:
        DataError: it is neither text nor messages.
    """
    column, turn = pl.col(name), pl.element().struct
    kind = raw.schema[name]
    if kind in (pl.String, pl.Null):
        return _one_turn(raw, name, role, path)
    inner = kind.inner if isinstance(kind, pl.List) else None
    if inner == pl.Null:
        return raw[name].cast(MESSAGES)
    fields = dict(inner) if isinstance(inner, pl.Struct) else {}
    if any(fields.get(key) not in (pl.String, pl.Null) for key in ("role", "content")):
        raise DataError(
            f"{path}: column {name} is {kind}; it must be text or a list of {{role, content}}, "
            "name another in data.columns"
        )
    who, content = (turn.field(key).cast(pl.String).fill_null("") for key in ("role", "content"))
    as_message = pl.struct(role=who, content=content.str.strip_chars())
    return raw.select(column.list.eval(as_message)).to_series()


def _one_turn(raw: pl.DataFrame, name: str, role: str, path: str) -> pl.Series:
    """A column of text as messages of one turn; null where there is no text."""
    column = pl.col(name).cast(pl.String)
    if raw.select(column.str.contains(_FLATTENED).any()).item():
        raise DataError(f"{path}: column {name} mixes text and message lists; make it one kind")
    one = pl.concat_list(pl.struct(role=pl.lit(role), content=column.str.strip_chars()))
    return raw.select(pl.when(column.is_not_null()).then(one).alias(name)).to_series()


def need(raw: pl.DataFrame, names: list[str], path: str, text: bool = False) -> None:
    """Refuse a dataset that lacks a column, or with `text`, one in which it is no text.

    Raises:
        DataError: it does.
    """
    if missing := [name for name in names if name not in raw.columns]:
        raise DataError(
            f"{path}: no column {', '.join(missing)} (it has {', '.join(raw.columns)}); check "
            "data.source, or map the columns with source: pairs and data.columns"
        )
    odd = [name for name in names if text and raw[name].dtype not in (pl.String, pl.Null)]
    if odd:
        raise DataError(
            f"{path}: column {odd[0]} is {raw[odd[0]].dtype}, no text; check data.source"
        )
