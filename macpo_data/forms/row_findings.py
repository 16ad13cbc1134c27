"""What is wrong, or worth knowing, about rows, looked for batch by batch.

Of rows that are gone stay counts, the first of each kind, and 37 bytes of hashes in `Repeats`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import polars as pl

from macpo_data.errors import TemplateRefusal
from macpo_data.models.conversation import Unsayable, table_ids
from macpo_data.recipe.generation import Select
from macpo_data.schema import MESSAGES, WHOLE, message_lists
from macpo_data.sources import overlap
from macpo_data.sources.ingest import canonical
from macpo_data.sources.ingest.canonical import Message
from macpo_data.sources.ingest.door import Judged

Level = Literal["error", "warning", "note"]
SIDES = ("chosen", "rejected")
# A share of pairs whose chosen side is the longer one, beyond which length is what is learned.
LENGTH_BIAS = 0.65
FIRST_WORDS = 3
# Near-duplicates are looked for among so many prompts: each costs some 300 us and 4 kB, which at a
# million would be minutes and gigabytes.
PROMPTS_COMPARED = 10_000
LIKENESS = 0.8  # Jaccard, of runs of words
# Of answers of so many characters, so large a share must end a sentence before one that stops
# amid a sentence is odd. A short answer is often no sentence, and code or lists seldom are.
LONG_ANSWER = 200
ENDED_SHARE = 0.8
_END = r"""[.!?\u2026\u3002\uff01\uff1f\u061f\u0964]["'*_)\]}\u201d\u2019\u00bb\u300d]*\s*$"""
_AMID = r"[\pL\pN,;\u3001\uff0c]\s*$"


@dataclass(frozen=True)
class Finding:
    """Something about the rows."""

    level: Level
    what: str
    count: int
    row: int | None = None  # the first such row


class Tally:
    """Findings, added up over batches."""

    def __init__(self) -> None:
        """Begin with none."""
        self._by_text: dict[str, Finding] = {}

    def add(self, level: Level, what: str, rows: Sequence[int] | pl.Series) -> None:
        """Count rows of which the same holds."""
        if len(rows):
            before = self._by_text.get(what) or Finding(level, what, 0, int(rows[0]))
            self._by_text[what] = replace(before, count=before.count + len(rows))

    def where(self, rows: pl.DataFrame, level: Level, what: str, holds: pl.Expr) -> None:
        """Count the rows of a frame of which an expression holds."""
        self.add(level, what, rows.filter(holds.fill_null(False))["at"])

    @property
    def findings(self) -> list[Finding]:
        """All of them, in the order in which they were first seen."""
        return list(self._by_text.values())


def as_frame(judged: Iterable[Judged]) -> pl.DataFrame:
    """Usable rows as text: (at, prompt_id, prompt, chosen, rejected, whole).

    A side that is more than text is its JSON, so that sides that differ anywhere stay different.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _FRAME}
    for each in judged:
        if each.row is None or each.reason is not None:
            continue
        columns["at"].append(each.number)
        columns["prompt_id"].append(each.row.prompt_id)
        columns["prompt"].append([_plain(message) for message in each.row.prompt])
        columns[WHOLE].append(each.row.whole)
        columns["chosen"].append(_as_text(each.row.chosen))
        columns["rejected"].append(_as_text(each.row.rejected))
    prompts = message_lists("prompt", columns["prompt"])
    return pl.DataFrame(columns | {"prompt": prompts}, schema=_FRAME)


_FRAME: dict[str, Any] = {
    "at": pl.Int64, "prompt_id": pl.String, "prompt": MESSAGES, "chosen": pl.String,
    "rejected": pl.String, WHOLE: pl.String,
}  # fmt: skip


def _plain(message: Message) -> dict[str, str]:
    return {"role": message["role"], "content": _content(message["content"])}


def _content(content: Any) -> str:
    return content if isinstance(content, str) else canonical.as_json(content)


def _as_text(side: list[Message] | None) -> str | None:
    if side is None:
        return None
    if len(side) == 1 and len(side[0]) == 2:
        return _content(side[0]["content"])
    return canonical.as_json(side)


class Repeats:
    """Prompts and pairs that come again, by hashes of 8 bytes.

    Two different texts have one hash by a chance of n^2 / 2^65 among n rows: 3 in 100 million
    where there are a million. What it costs is a row that is counted as a repeat and is none.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._batches: list[pl.DataFrame] = []

    def look(self, good: pl.DataFrame) -> None:
        """Remember a batch."""
        chosen, rejected = (pl.col(side).hash() for side in SIDES)
        normalised = [overlap.normalised(pl.col(side)) for side in SIDES]
        asked = overlap.question(pl.col("prompt"))
        self._batches.append(
            good.select(
                pl.col("at").cast(pl.UInt32),
                prompt=pl.col("prompt_id").hash(),
                question=asked.hash(),
                # One number for both orders of two answers; which of them it was stands beside it.
                answers=pl.struct("prompt_id", chosen ^ rejected).hash(),
                ordered=chosen < rejected,
                normal=pl.struct(asked.alias("q"), *normalised).hash(),
            )
        )

    def tell(self, tally: Tally, *, pairs: bool) -> None:
        """What came again, once all rows were seen.

        Args:
            tally: takes it.
            pairs: whether the rows have two sides.
        """
        if not self._batches:
            return
        rows = pl.concat(self._batches)
        self._batches.clear()
        tally.where(
            rows, "warning", "the prompt occurred before", ~pl.col("prompt").is_first_distinct()
        )
        once = rows.unique("prompt", maintain_order=True, keep="first")
        text = "the prompt differs from an earlier one in case or points"
        tally.where(once, "warning", text, ~pl.col("question").is_first_distinct())
        if not pairs:
            return
        keys = ["answers", "ordered"]
        again = ~pl.struct(keys).is_first_distinct()
        tally.where(rows, "warning", "the pair occurred before", again)
        first = rows.unique(keys, maintain_order=True, keep="first")
        text = "the pair differs from an earlier one in case, points or spaces alone"
        tally.where(first, "warning", text, ~pl.col("normal").is_first_distinct())
        text = "the same two answers to the prompt were preferred the other way round before"
        tally.where(first, "warning", text, ~pl.col("answers").is_first_distinct())


class Alike:
    """Prompts that are much like an earlier one, of the first PROMPTS_COMPARED different ones."""

    def __init__(self) -> None:
        """Begin with none."""
        self._different: set[bytes] = set()
        self._seen: overlap.Seen | None = None

    def look(self, good: pl.DataFrame, tally: Tally) -> None:
        """Compare the prompts of a batch; `Repeats` tells those that differ in case alone."""
        self._seen = self._seen or overlap.Seen(LIKENESS)
        for at, text in good.select("at", overlap.question(pl.col("prompt"))).iter_rows():
            if len(self._different) == PROMPTS_COMPARED:
                return
            key = hashlib.sha256(text.encode()).digest()
            if not text or key in self._different:
                continue
            self._different.add(key)
            if self._seen.is_like_earlier(text):
                bound = f"{PROMPTS_COMPARED:,} compared at most"
                tally.add("note", f"the prompt is much like an earlier one ({bound})", [at])


@dataclass
class Lengths:
    """How long both sides are, how they begin, and how they end."""

    pairs: int = 0
    longer: int = 0  # pairs whose chosen side is the longer one
    chars: list[int] = field(default_factory=lambda: [0, 0])
    alike: int = 0  # pairs that begin with the same words
    alike_first: int | None = None
    long: list[int] = field(default_factory=lambda: [0, 0])
    ended: list[int] = field(default_factory=lambda: [0, 0])
    amid: list[int] = field(default_factory=lambda: [0, 0])
    amid_first: list[int | None] = field(default_factory=lambda: [None, None])

    def look(self, good: pl.DataFrame) -> None:
        """Add a batch; of rows that are more than text, whose sides are JSON here, none."""
        good = good.filter(pl.col(WHOLE).is_null())
        for at, side in enumerate(SIDES):
            long = good.filter(pl.col(side).str.len_chars() >= LONG_ANSWER)
            amid = long.filter(pl.col(side).str.contains(_AMID))["at"]
            self.long[at] += len(long)
            self.ended[at] += int(long[side].str.contains(_END).sum())
            self.amid[at] += len(amid)
            if self.amid_first[at] is None and len(amid):
                self.amid_first[at] = int(amid[0])
        chosen, rejected = (pl.col(side).str.len_chars() for side in SIDES)
        # Answers of fewer words begin alike in all of theirs, or not at all.
        words = rf"^\s*((\S+\s+){{{FIRST_WORDS - 1}}}\S+)"
        begins = [pl.col(s).str.extract(words).str.replace_all(r"\s+", " ") for s in SIDES]
        both = good.filter(pl.col("chosen").is_not_null() & pl.col("rejected").is_not_null())
        alike = both.filter((begins[0] == begins[1]).fill_null(False))["at"]
        self.pairs += len(both)
        self.longer += both.filter(chosen > rejected).height
        self.chars[0] += both.select(chosen.sum()).item()
        self.chars[1] += both.select(rejected.sum()).item()
        self.alike += len(alike)
        if self.alike_first is None and len(alike):
            self.alike_first = int(alike[0])

    def findings(self) -> Iterator[Finding]:
        """What they tell, once all rows were seen."""
        for at, side in enumerate(SIDES):
            if self.long[at] and self.ended[at] >= ENDED_SHARE * self.long[at]:
                share = self.ended[at] / self.long[at]
                yield Finding(
                    "note",
                    f"{side} stops amid a sentence, perhaps cut: {share:.0%} of its long answers "
                    "end one",
                    self.amid[at],
                    self.amid_first[at],
                )
        if not self.pairs:
            return
        share = self.longer / self.pairs
        level: Level = "warning" if not 1 - LENGTH_BIAS <= share <= LENGTH_BIAS else "note"
        ratio = self.chars[0] / max(1, self.chars[1])
        text = f"chosen is the longer side in {share:.0%} (mean length x {ratio:.2f})"
        yield Finding(level, text, self.longer)
        text = f"both sides begin with the same {FIRST_WORDS} words ({self.alike / self.pairs:.0%})"
        yield Finding("note", text, self.alike, self.alike_first)


def doubled(good: pl.DataFrame, tally: Tally) -> None:
    """An answer that begins with the prompt's last turn: it would be trained on twice."""
    last = pl.col("prompt").list.last().struct.field("content")
    inside = pl.any_horizontal(
        pl.col(side).str.starts_with(last) & (pl.col(side).str.len_chars() > last.str.len_chars())
        for side in SIDES
    )
    long = last.str.len_chars() > 20  # a short one may well be quoted
    tally.where(good, "error", "the prompt is repeated at the start of an answer", inside & long)


def leaked(good: pl.DataFrame, tests: overlap.Tests, tally: Tally) -> None:
    """Prompts that stand in a test set, or overlap one."""
    out = overlap.excluded(good.unique("prompt_id"), tests, Select(test_sets=["given"]))
    texts = {
        "in_test_set": "the prompt stands in a test set",
        "overlaps_test_set": "the prompt overlaps a test set",
    }
    for reason, text in texts.items():
        ids = out.filter(reason=reason)["prompt_id"].implode()
        tally.where(good, "error", text, pl.col("prompt_id").is_in(ids))


def tokens(good: pl.DataFrame, chat: Any, max_length: int, tally: Tally) -> set[str | None]:
    """Rows that the tokenizer's template refuses, and those that are too long.

    Returns:
        Why a training ends, or leaves rows out; None among it where some rows can be trained.

    Args:
        good: a batch.
        chat: a macpo_data.models.chat.Chat.
        max_length: tokens of prompt and answer together.
        tally: takes them.

    Raises:
        ModelError: the template fails on a prompt whatever the roles in it, or takes too long.
    """
    by_roles = good.group_by(
        pl.col("prompt").list.eval(pl.element().struct.field("role")), maintain_order=True
    )
    verdicts: set[str | None] = set()
    text = f"longer than {max_length} tokens: cut, or dropped, by the trainer"
    for _, rows in by_roles:
        table, numbers = rows.rows(named=True), rows["at"].to_list()
        sides = [side for side in SIDES if rows[side].null_count() < len(rows)]
        ends = [[True] * len(rows)] * len(sides)
        try:
            # Templates refuse roles: of prompts with the same ones the first tells of all.
            table_ids(chat, table[:1], sides, [[True]] * len(sides), numbers[:1])
            every = table_ids(chat, table, sides, ends, numbers)
        except TemplateRefusal as refusal:
            what = f"the tokenizer's chat template refuses the role {refusal.role}"
            tally.add("error", f"{what}: {refusal.reason}", numbers)
            verdicts.add(what)
            continue
        over = []
        for number, row in zip(numbers, every, strict=True):
            if isinstance(row, Unsayable):
                tally.add("error", f"not trained: {row}", [number])
                verdicts.add(str(row))
                continue
            verdicts.add(None)
            if len(row.prompt) + max(len(side.ids) for side in row.sides) > max_length:
                over.append(number)
        tally.add("error", text, over)
    return verdicts
