"""What each trainer would make of a preference dataset, and what is wrong with its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from macpo_data.errors import DataError
from macpo_data.recipe import Columns, Select
from macpo_data.sources import overlap
from macpo_data.sources.pairs import preference_rows

Level = Literal["error", "warning", "note"]
Kind = Literal["text", "messages", "message", "other", "missing"]
TRAINERS = (
    "trl", "axolotl", "llama-factory", "openrlhf", "open-instruct", "alignment-handbook",
    "torchtune", "nemo-rl", "macpo",
)  # fmt: skip
# A share of pairs whose chosen side is the longer one, beyond which length is what is learned.
LENGTH_BIAS = 0.65
_MISREAD = ("messages", "completion", "label", "completions")
_SPACE = r"^\s|\s$"

REASONS = {
    "prompt_differs": "chosen and rejected answer different prompts",
    "empty_prompt": "the prompt is empty, or one of its turns",
    "empty_chosen": "chosen is empty",
    "empty_rejected": "rejected is empty",
    "same_sides": "chosen and rejected are the same",
    "not_alternating": "roles are not in order: user, assistant, ..., user, and an answer",
    "no_preference": "neither side is preferred",
}


@dataclass(frozen=True)
class Finding:
    """Something about the rows."""

    level: Level
    what: str
    count: int
    row: int | None = None  # the first such row


@dataclass(frozen=True)
class Reading:
    """What a trainer makes of the columns."""

    trainer: str
    reads: bool
    how: str


def kinds(table: pl.DataFrame) -> dict[str, Kind]:
    """What each column holds."""

    def kind(dtype: pl.DataType) -> Kind:
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        is_message = isinstance(inner, pl.Struct) and {"role", "content"} <= {
            field.name for field in inner.fields
        }
        if is_message:
            return "messages" if isinstance(dtype, pl.List) else "message"
        return "text" if dtype == pl.String else "other"

    return {name: kind(dtype) for name, dtype in table.schema.items()}


def fine_tuning(table: pl.DataFrame, columns: Columns) -> pl.DataFrame | None:
    """A dataset without sides as prompt and chosen, which is what it teaches; None for pairs."""
    if {columns.chosen, columns.rejected} & set(table.columns):
        return None
    if {columns.prompt, "completion"} <= set(table.columns):
        return table.select(columns.prompt, pl.col("completion").alias("chosen"))
    if kinds(table).get("messages") == "messages":
        turns = pl.col("messages").list
        return table.select(
            turns.head(turns.len() - 1).alias(columns.prompt), turns.tail(1).alias("chosen")
        )
    return None


def _sft_readings(table: pl.DataFrame, columns: Columns) -> list[Reading]:
    whole = "completion" not in table.columns
    wants = "wants whole conversations, as `messages`"
    said = {
        "trl": (True, "trl sft"),
        "axolotl": (whole, "type: chat_template, field_messages: messages" if whole else wants),
        "llama-factory": (whole, "stage: sft, formatting: sharegpt" if whole else wants),
        "macpo": (
            not whole,
            "wants the prompt apart"
            if whole
            else "macpo train --dataset, --set objective=sft --set columns.chosen=completion "
            "--set columns.rejected=null",
        ),
    }
    unknown = (False, "how it reads data for fine-tuning is not known here")
    return [Reading(trainer, *said.get(trainer, unknown)) for trainer in TRAINERS]


def readings(table: pl.DataFrame, columns: Columns) -> list[Reading]:
    """How each trainer reads these columns, with the settings that it would need."""
    if fine_tuning(table, columns) is not None:
        return _sft_readings(table, columns)
    known = kinds(table)
    prompt = known.get(columns.prompt, "missing")
    chosen = known.get(columns.chosen or "", "missing")
    rejected = known.get(columns.rejected or "", "missing")
    both = chosen if chosen == rejected else "other"
    full = both == "messages" and _is_full(table, columns, prompt)
    explicit = prompt in ("text", "messages") and both == prompt and not full
    implicit = prompt == "missing" and (full or both == "text")
    misread = [name for name in _MISREAD if name in known]
    texts = [n for n in (f"{columns.chosen}_text", f"{columns.rejected}_text") if n in known]
    said = {
        "trl": (
            (explicit or implicit) and not misread,
            f"a column named {misread[0]} would be misread"
            if misread
            else "explicit prompt"
            if explicit
            else "the prompt is inside both sides, and taken out"
            if implicit
            else "the prompt is there twice: apart, and inside the sides"
            if full
            else f"prompt is {prompt}, chosen {chosen}, rejected {rejected}; they have to be alike",
        ),
        "axolotl": (
            prompt in ("text", "messages")
            and {chosen, rejected} <= {"text", "messages", "message"},
            f"type: chat_template.default, field_messages: {columns.prompt}"
            if prompt in ("text", "messages")
            else "chat_template.default wants the prompt apart",
        ),
        "llama-factory": (
            prompt == "messages" and both == "message",
            "formatting: sharegpt, ranking: true"
            if prompt == "messages" and both == "message"
            else "wants each side as one message; as lists, rows vanish without a word",
        ),
        "openrlhf": (
            both == "messages" and (explicit or implicit),
            "--data.apply_chat_template, the default configuration only"
            if both == "messages" and (explicit or implicit)
            else "wants lists of messages, the prompt apart or inside both",
        ),
        "nemo-rl": (
            prompt in ("text", "messages") and (both == "text" or len(texts) == 2),
            f"chosen_key: {texts[0]}, rejected_key: {texts[1]}"
            if len(texts) == 2
            else "BinaryPreferenceDataset"
            if both == "text" and prompt != "missing"
            else "wants the prompt apart and both sides as text",
        ),
    }
    for trainer in ("open-instruct", "alignment-handbook", "torchtune"):
        how = "whole conversations" if full else "wants the prompt inside both sides, as messages"
        said[trainer] = (full, how)
    said["macpo"] = (True, "macpo train --dataset")
    return [Reading(trainer, *said[trainer]) for trainer in TRAINERS]


def _is_full(table: pl.DataFrame, columns: Columns, prompt: Kind) -> bool:
    """Whether both sides hold the prompt: more than one turn, the first one not the assistant's."""
    if table.is_empty():
        return False
    sides = [pl.col(name) for name in (columns.chosen, columns.rejected) if name]
    whole = pl.all_horizontal(
        (side.list.len() > 1) & (side.list.first().struct.field("role") != "assistant")
        for side in sides
    )
    share = table.select(whole.fill_null(False).mean()).item()
    return bool(share and share > 0.5)


def findings(
    table: pl.DataFrame,
    columns: Columns,
    place: str,
    *,
    tests: list[pl.Series] | None = None,
    chat: Any = None,
    max_length: int = 1024,
) -> list[Finding]:
    """What is wrong, or worth knowing, about the rows of pairs, or of data for fine-tuning.

    Args:
        table: as it is.
        columns: which hold what.
        place: for errors.
        tests: texts of test sets that no prompt may occur in.
        chat: a macpo_data.models.chat.Chat, to count tokens; None counts none.
        max_length: tokens of prompt and answer together.

    Raises:
        DataError: the columns are no preference pairs at all.
    """
    if (targets := fine_tuning(table, columns)) is not None:
        table, columns = targets, Columns(prompt=columns.prompt, rejected=None)
    table = table.drop("at", strict=False)  # what rows are numbered by here
    rows = preference_rows(table, columns, place).with_row_index("at")
    if rows.is_empty():
        return [Finding("error", "there is no row", 0)]
    found = [
        _finding(rows, "error", text, pl.col("reason") == reason)
        for reason, text in REASONS.items()
    ]
    sides = ("chosen", "rejected") if columns.rejected else ("chosen",)
    nothing = pl.any_horizontal(pl.col(side).is_null() for side in sides)
    found.append(_finding(rows, "error", "a side is missing", nothing & pl.col("reason").is_null()))
    good = rows.filter(pl.col("prompt_id").is_not_null() & ~nothing)
    found += [
        _finding(
            rows, "warning", "the prompt occurred before", pl.col("reason") == "duplicate_prompt"
        ),
        _doubled(good),
        *_spacing(table, columns),
    ]
    asked = good.select("prompt_id", "at", text=overlap.question(pl.col("prompt")))
    again = pl.col("text").is_duplicated() & ~pl.col("text").is_first_distinct()
    reworded = asked.unique("prompt_id", maintain_order=True)
    found.append(
        _finding(
            reworded, "warning", "the prompt differs from an earlier one in case or points", again
        )
    )
    if tests:
        out = overlap.excluded(good.unique("prompt_id"), tests, Select(test_sets=["given"]))
        for reason, text in {
            "in_test_set": "the prompt stands in a test set",
            "overlaps_test_set": "the prompt overlaps a test set",
        }.items():
            ids = out.filter(pl.col("reason") == reason)["prompt_id"].implode()
            found.append(_finding(good, "error", text, pl.col("prompt_id").is_in(ids)))
    if chat is not None:
        found.append(_too_long(good, chat, max_length))
    if columns.rejected and not good.is_empty():
        found.append(_length_bias(good))
    ends = (name for name in table.columns if name.endswith("chosen_finish_reason"))
    cut = [pl.col(name).cast(pl.String, strict=False) == "length" for name in ends]
    if cut:
        at = table.with_row_index("at")
        text = "chosen was cut by the token limit: it does not teach to stop"
        found.append(_finding(at, "warning", text, pl.any_horizontal(cut)))
    return [each for each in found if each.count]


def _finding(rows: pl.DataFrame, level: Level, what: str, holds: pl.Expr) -> Finding:
    at = rows.filter(holds.fill_null(False))["at"]
    return Finding(level, what, len(at), at[0] if len(at) else None)


def _doubled(good: pl.DataFrame) -> Finding:
    """An answer that begins with the prompt's last turn: it would be trained on twice."""
    last = pl.col("prompt").list.last().struct.field("content")
    inside = pl.any_horizontal(
        pl.col(side).str.starts_with(last) & (pl.col(side).str.len_chars() > last.str.len_chars())
        for side in ("chosen", "rejected")
    )
    long = last.str.len_chars() > 20  # a short one may well be quoted
    return _finding(
        good, "error", "the prompt is repeated at the start of an answer", inside & long
    )


def _spacing(table: pl.DataFrame, columns: Columns) -> list[Finding]:
    """Text with white space around it: axolotl finds contents by their text, and loses such."""
    found = []
    for name in (columns.prompt, columns.chosen, columns.rejected):
        if name is None or name not in table.columns:
            continue
        kind = kinds(table)[name]
        column = pl.col(name)
        if kind == "messages":
            spaced = column.list.eval(
                pl.element().struct.field("content").cast(pl.String).str.contains(_SPACE)
            ).list.any()
        elif kind == "message":
            spaced = column.struct.field("content").cast(pl.String).str.contains(_SPACE)
        elif kind == "text":
            spaced = column.str.contains(_SPACE)
        else:
            continue
        text = f"white space around a text in {name}"
        found.append(_finding(table.with_row_index("at"), "warning", text, spaced))
    return found


def _too_long(good: pl.DataFrame, chat: Any, max_length: int) -> Finding:
    over = []
    for row in good.iter_rows(named=True):
        said = [row[side] for side in ("chosen", "rejected") if row[side] is not None]
        answers = [chat.response_ids(text, True) for text in said]
        if len(chat.prompt_ids(row["prompt"])) + max(map(len, answers)) > max_length:
            over.append(row["at"])
    text = f"longer than {max_length} tokens: cut, or dropped, by the trainer"
    return Finding("error", text, len(over), over[0] if over else None)


def _length_bias(good: pl.DataFrame) -> Finding:
    chosen, rejected = (pl.col(side).str.len_chars() for side in ("chosen", "rejected"))
    share, ratio = good.select(
        share=(chosen > rejected).mean(), ratio=chosen.mean() / rejected.mean()
    ).row(0)
    longer = round(share * len(good))
    level: Level = "warning" if not 1 - LENGTH_BIAS <= share <= LENGTH_BIAS else "note"
    return Finding(
        level, f"chosen is the longer side in {share:.0%} (mean length x {ratio:.2f})", longer
    )


def verdict(found: list[Finding], read: list[Reading], wanted: str | None) -> bool:
    """Whether the dataset is fit: no error in its rows, and the trainer that counts can read it.

    Raises:
        DataError: there is no such trainer.
    """
    if wanted is not None and wanted not in TRAINERS:
        raise DataError(f"no trainer {wanted!r}; choose {', '.join(TRAINERS)}")
    fit = next((r.reads for r in read if r.trainer == wanted), any(r.reads for r in read))
    return fit and not any(each.level == "error" for each in found)
