"""Checks a preference dataset: which trainers can read it, and what is wrong with its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from macpo_data.errors import DataError
from macpo_data.forms.registry import trainers
from macpo_data.forms.shape import Kind, fine_tuning, kinds, shape_of
from macpo_data.recipe.data import Columns
from macpo_data.recipe.generation import Select
from macpo_data.sources import overlap
from macpo_data.sources.pairs import preference_rows

Level = Literal["error", "warning", "note"]
# A share of pairs whose chosen side is the longer one, beyond which length is what is learned.
LENGTH_BIAS = 0.65
_UNKNOWN = (False, "how it reads data for fine-tuning is not known here")
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


def readings(table: pl.DataFrame, columns: Columns) -> list[Reading]:
    """How each trainer reads these columns, with the settings that it would need."""
    shape = shape_of(table, columns)
    pairs = fine_tuning(table, columns) is None
    read = []
    for trainer in trainers():
        use = trainer.pairs if pairs else trainer.fine_tuning
        read.append(Reading(trainer.name, *(use.reads(shape) if use else _UNKNOWN)))
    return read


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
    good, listed = _usable(rows, columns)
    before = pl.col("reason") == "duplicate_prompt"
    listed += [
        _finding(rows, "warning", "the prompt occurred before", before),
        _doubled(good),
        *_spacing(table, columns),
        _reworded(good),
        *_leaked(good, tests or []),
    ]
    if chat is not None:
        listed.append(_too_long(good, chat, max_length))
    if columns.rejected and not good.is_empty():
        listed.append(_length_bias(good))
    listed += _cut(table)
    return [each for each in listed if each.count]


def _usable(rows: pl.DataFrame, columns: Columns) -> tuple[pl.DataFrame, list[Finding]]:
    """The rows with a prompt and all sides, and what is wrong with the others."""
    sides = ("chosen", "rejected") if columns.rejected else ("chosen",)
    nothing = pl.any_horizontal(pl.col(side).is_null() for side in sides)
    reasons = {text: pl.col("reason") == reason for reason, text in REASONS.items()}
    reasons["a side is missing"] = nothing & pl.col("reason").is_null()
    listed = [_finding(rows, "error", text, holds) for text, holds in reasons.items()]
    return rows.filter(pl.col("prompt_id").is_not_null() & ~nothing), listed


def _reworded(good: pl.DataFrame) -> Finding:
    """A prompt that occurred before in all but case and points."""
    prompts = good.select("prompt_id", "at", text=overlap.question(pl.col("prompt")))
    again = pl.col("text").is_duplicated() & ~pl.col("text").is_first_distinct()
    text = "the prompt differs from an earlier one in case or points"
    return _finding(prompts.unique("prompt_id", maintain_order=True), "warning", text, again)


def _leaked(good: pl.DataFrame, tests: list[pl.Series]) -> list[Finding]:
    """Prompts that stand in a test set, or overlap one."""
    if not tests:
        return []
    out = overlap.excluded(good.unique("prompt_id"), tests, Select(test_sets=["given"]))
    texts = {
        "in_test_set": "the prompt stands in a test set",
        "overlaps_test_set": "the prompt overlaps a test set",
    }
    ids = {reason: out.filter(reason=reason)["prompt_id"].implode() for reason in texts}
    return [
        _finding(good, "error", text, pl.col("prompt_id").is_in(ids[reason]))
        for reason, text in texts.items()
    ]


def _cut(table: pl.DataFrame) -> list[Finding]:
    """Chosen answers without an end, where the dataset says why each ended."""
    ends = (name for name in table.columns if name.endswith("chosen_finish_reason"))
    cut = [pl.col(name).cast(pl.String, strict=False) == "length" for name in ends]
    if not cut:
        return []
    text = "chosen was cut by the token limit: it does not teach to stop"
    return [_finding(table.with_row_index("at"), "warning", text, pl.any_horizontal(cut))]


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
    rows, held = table.with_row_index("at"), kinds(table)
    listed = []
    for name in (columns.prompt, columns.chosen, columns.rejected):
        if name in held and (spaced := _spaced(pl.col(name), held[name])) is not None:
            text = f"white space around a text in {name}"
            listed.append(_finding(rows, "warning", text, spaced))
    return listed


def _spaced(column: pl.Expr, kind: Kind) -> pl.Expr | None:
    """Whether a text of a column begins or ends with white space; None where it holds no text."""
    if kind == "text":
        return column.str.contains(_SPACE)
    if kind == "message":
        return column.struct.field("content").cast(pl.String).str.contains(_SPACE)
    if kind == "messages":
        content = pl.element().struct.field("content").cast(pl.String)
        return column.list.eval(content.str.contains(_SPACE)).list.any()
    return None


def _too_long(good: pl.DataFrame, chat: Any, max_length: int) -> Finding:
    over = []
    for row in good.iter_rows(named=True):
        texts = [row[side] for side in ("chosen", "rejected") if row[side] is not None]
        answers = [chat.response_ids(text, True) for text in texts]
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


def verdict(findings: list[Finding], read: list[Reading], wanted: str | None) -> bool:
    """Whether the dataset is fit: no error in its rows, and the trainer that counts can read it.

    Raises:
        DataError: there is no such trainer.
    """
    names = [reading.trainer for reading in read]
    if wanted is not None and wanted not in names:
        raise DataError(f"no trainer {wanted!r}; choose {', '.join(names)}")
    fit = next((r.reads for r in read if r.trainer == wanted), any(r.reads for r in read))
    return fit and not any(each.level == "error" for each in findings)
