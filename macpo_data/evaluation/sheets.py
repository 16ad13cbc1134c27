"""Blind pairwise comparison by people: writes sheets to fill in, reads the filled ones.

A sheet does not tell which answer is whose: the sides are drawn for each row, and the key to them
lies in a file of its own.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict

from macpo_data import stats
from macpo_data.errors import DataError
from macpo_data.evaluation.evaluate import answers_of, beside, find_baseline
from macpo_data.evaluation.policies import find_policy
from macpo_data.evaluation.results import Evaluation, write
from macpo_data.generation.run_context import RunContext
from macpo_data.outside import parse_json, read_bytes, read_text
from macpo_data.plan import FORMAT, Policy
from macpo_data.recipe.section import digest
from macpo_data.schema import JUDGEMENTS, check
from macpo_data.store.store import atomic, write_json

COLUMNS = ("row", "prompt", "answer_1", "answer_2", "verdict")
HINT = "1, 2 or tie"
# How a cell begins that a spreadsheet would compute, in all widths, and where a cell may begin:
# inside a text, too, behind a line feed or what a spreadsheet takes for the separator.
_FORMULA = "=+\\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b"
_BORDER = ";\n\r\t"
_BLANK = "\\s\"'\\x00-\\x20\\ufeff\\u200b-\\u200f\\u2060"
_BEGINNING = re.compile(f"([{_BORDER}{_BLANK}]+|\\A)([{_FORMULA}]?)")


class Side(BaseModel):
    """Which answer of a row stands first."""

    model_config = ConfigDict(strict=True, frozen=True)

    prompt_id: str
    first: Literal["a", "b"]


class Key(BaseModel):
    """The key to a sheet: whose answers stand in it, and where."""

    model_config = ConfigDict(strict=True, frozen=True)

    policy: str
    against: str  # a policy, a bare base, or the human's answer
    made_from: dict[str, str]  # content of each result, by name
    rows: dict[str, Side]


def write_sheet(ctx: RunContext, policy: Policy, against: str, to: Path) -> Path:
    """Write a sheet, and return where its key is.

    Raises:
        MacpoError: there is no such baseline, it is not trained yet or the policy itself, or a
            key is in the way.
    """
    if against == str(policy):
        raise DataError(f"{policy} beside itself tells nothing; name another with --against")
    where = to.with_suffix(".key.json")
    if where.exists():
        raise DataError(f"{where} is another sheet's key; move it away, or choose another --to")
    rows, made_from = _pairs(ctx, policy, against)
    # In the name of each row, so that no sheet is read with the key of another one.
    sheet_id = f"s{digest([made_from, str(policy), against, ctx.recipe.seed])}"
    order = rows.with_columns(
        draw=pl.Series([digest([ctx.recipe.seed, "sheet", i]) for i in rows["prompt_id"]])
    ).sort("draw")
    key: dict[str, dict[str, str]] = {}
    text = io.StringIO(newline="")
    sheet = csv.writer(text, quoting=csv.QUOTE_ALL)
    sheet.writerow([*COLUMNS[:-1], f"verdict ({HINT})"])
    for n, row in enumerate(order.iter_rows(named=True), start=1):
        a_first = random.Random(f"{ctx.recipe.seed} {row['prompt_id']}").random() < 0.5
        sides = (row["a"], row["b"]) if a_first else (row["b"], row["a"])
        name = f"{sheet_id}-{n}"
        key[name] = {"prompt_id": row["prompt_id"], "first": "a" if a_first else "b"}
        prompt = "\n".join(f"{m['role']}: {m['content']}" for m in row["prompt"])
        sheet.writerow([name, inert(prompt), *(inert(side or "") for side in sides), ""])
    with atomic(to) as temporary:
        # The mark at the beginning tells spreadsheets that it is UTF-8.
        temporary.write_text(text.getvalue(), "utf-8-sig", newline="")
    who = {"policy": str(policy), "against": against, "made_from": made_from}
    write_json(where, {**who, "rows": key})
    return where


def read_sheets(ctx: RunContext, sheets: Sequence[Path], key_file: Path) -> Evaluation:
    """Win rates from filled sheets, one per annotator, with their agreement.

    Raises:
        DataError: a sheet or the key cannot be read, or the answers changed since.
    """
    try:
        key = Key.model_validate(parse_json(read_bytes(key_file)))
    except (OSError, ValueError) as error:  # pydantic's own error is a ValueError
        raise DataError(
            f"cannot read the key {key_file} ({type(error).__name__}); name the one that was "
            "written with the sheet with --key"
        ) from None
    policy, against, rows = find_policy(ctx.plan, key.policy), key.against, key.rows
    if len({path.resolve() for path in sheets}) < len(sheets):
        raise DataError("a sheet is named twice; name each annotator's once")
    pairs, made_from = _pairs(ctx, policy, against)
    if made_from != key.made_from:
        raise DataError(
            f"the answers in {sheets[0]} are not those of this recipe and run; export a new sheet"
        )
    filled = [_filled(path, rows) for path in sheets]
    wins = {
        rows[n].prompt_id: [worth for each in filled if (worth := each[n]) is not None]
        for n in rows
    }
    means = [sum(w) / len(w) if (w := wins[i]) else None for i in pairs["prompt_id"]]
    judgements = pairs.with_columns(
        first=pl.lit(None, pl.String),
        second=pl.lit(None, pl.String),
        win=pl.Series(means, dtype=pl.Float64),
    )
    print_ = digest([FORMAT, made_from, filled])
    habits: dict[str, Any] = {
        "annotators": [path.name for path in sheets],
        "verdicts": [sum(worth is not None for worth in each.values()) for each in filled],
        "krippendorff_alpha": stats.agreement([[each[n] for n in rows] for each in filled]),
    }
    who = f"{len(sheets)} people"
    who += ", of the first answers" if ctx.plan.sampling("test").n > 1 else ""
    by = dict.fromkeys(("win", "win_lc"), (who, print_))
    checked = check(judgements, JUDGEMENTS, "filled sheets")
    return write(ctx, [policy], by, answers_of(ctx, [policy], n=1), checked, habits)


def _pairs(ctx: RunContext, policy: Policy, against: str) -> tuple[pl.DataFrame, dict[str, str]]:
    """The policy's answers (a) beside the baseline's (b), and what both are made from.

    Of several answers to a prompt the first: people have no time for more.
    """
    baseline = find_baseline(ctx, against)
    rows = beside(ctx, answers_of(ctx, [policy], n=1), baseline)
    samples = {n: c for n, c in ctx.used.items() if n.startswith("samples/")}
    return rows, {ctx.plan.prompts_name: str(ctx.store.content(ctx.plan.prompts_name)), **samples}


def _filled(path: Path, rows: Mapping[str, Side]) -> dict[str, float | None]:
    """For each row of a sheet 1 where the policy won, 0 where the baseline did, 0.5 for a tie."""
    try:
        text = read_text(path).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({type(error).__name__}); save it as CSV") from None
    header = text.split("\n", 1)[0]
    separator = ";" if header.count(";") > header.count(",") else ","
    csv.field_size_limit(2**31 - 1)  # an answer may be longer than csv expects
    try:
        sheet = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        table = list(sheet)
    except csv.Error as error:
        raise DataError(f"cannot read {path} ({error}); save it as CSV") from None
    column = next((c for c in sheet.fieldnames or () if c.lower().startswith("verdict")), None)
    if column is None:
        raise DataError(f"{path} has no column verdict; fill in the sheet as it was exported")
    named = [((row.get("row") or "").strip(), row[column] or "") for row in table]
    verdicts = {name: verdict.strip().lower() for name, verdict in named if name}
    if sorted(name for name, _ in named if name) != sorted(rows):
        raise DataError(f"{path} has other rows than its key; fill in the sheet as it was exported")
    if not any(verdicts.values()):
        raise DataError(f"{path} holds no verdict; write {HINT} into its column {column!r}")
    if wrong := [n for n, verdict in verdicts.items() if verdict not in ("", "1", "2", "tie")]:
        raise DataError(
            f"{path}, row {wrong[0]}: {verdicts[wrong[0]]!r} is no verdict; write {HINT}"
        )
    worth = {"a": {"1": 1.0, "2": 0.0, "tie": 0.5}, "b": {"1": 0.0, "2": 1.0, "tie": 0.5}}
    return {n: worth[rows[n].first].get(verdicts[n]) for n in rows}


def inert(text: str) -> str:
    """A cell in which no spreadsheet finds a formula, whatever it takes for the separator.

    >>> inert("=1+1"), inert("a = b")
    ("'=1+1", 'a = b')
    """

    def mark(beginning: re.Match[str]) -> str:
        before, formula = beginning.groups()
        is_cell = beginning.start() == 0 or any(c in _BORDER for c in before)
        return f"{before}'{formula}" if formula and is_cell else beginning[0]

    return _BEGINNING.sub(mark, text)
