"""Decontamination and deduplication: prompts that occur in a test set, near-duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from macpo_data.recipe.generation import Select

if TYPE_CHECKING:
    from datasketch import MinHash

ROWS = 50_000  # prompts whose n-grams are in memory at once
SHINGLE = 3  # words that MinHash takes as one
PERMUTATIONS = 128
# Columns of prompts, the likeliest first.
PROMPTS = ("prompt", "prompts", "instruction", "question", "turns", "messages", "text")


def question(prompt: pl.Expr) -> pl.Expr:
    """What the user says in a message list, normalised: lower case, words and single spaces."""
    user_texts = prompt.list.eval(
        pl.element().struct.field("content").filter(pl.element().struct.field("role") == "user")
    )
    return normalised(user_texts.list.join(" "))


def normalised(text: pl.Expr) -> pl.Expr:
    """Text without case, punctuation and spacing."""
    return text.str.to_lowercase().str.replace_all(r"[^\w]+", " ").str.strip_chars()


@dataclass
class Tests:
    """The texts of all test sets, normalised; their n-grams are made once."""

    texts: pl.Series
    _grams: dict[int, pl.DataFrame] = field(default_factory=dict)  # by n

    @classmethod
    def of(cls, sets: Sequence[pl.Series]) -> Tests:
        """Of the texts of each test set, as they are."""
        given = pl.concat([pl.Series("text", [], pl.String), *(s.rename("text") for s in sets)])
        texts = given.to_frame().select(normalised(pl.col("text"))).unique()
        return cls(texts.filter(pl.col("text") != "")["text"])

    def grams(self, n: int) -> pl.DataFrame:
        """(test, gram): the different runs of n words in each text; a shorter one has none."""
        if n not in self._grams:
            numbers = pl.int_range(len(self.texts), eager=True)
            self._grams[n] = _ngrams(pl.DataFrame({"test": numbers, "text": self.texts}), n)
        return self._grams[n]


def excluded(
    prompts: pl.DataFrame, tests: Sequence[pl.Series] | Tests, settings: Select
) -> pl.DataFrame:
    """The prompts that may not be learned from.

    Args:
        prompts: PROMPTS.
        tests: texts of each test set, as they are; or prepared, for several calls.
        settings: n-gram length, shares and the likeness of near-duplicates.

    Returns:
        (prompt_id, reason), the first reason that holds: in_test_set, overlaps_test_set,
        near_duplicate.
    """
    questions = prompts.select("prompt_id", text=question(pl.col("prompt")))
    reasons = []
    prepared = tests if isinstance(tests, Tests) else Tests.of(tests)
    if len(prepared.texts):
        same = questions.join(prepared.texts.to_frame(), on="text", how="semi")
        reasons.append(same.select("prompt_id", reason=pl.lit("in_test_set")))
        ids = overlapping(questions, prepared, settings.ngram, settings.ngram_share)
        reasons.append(ids.select("prompt_id", reason=pl.lit("overlaps_test_set")))
    if settings.near_duplicates is not None:
        rest = (
            questions.join(pl.concat(reasons), on="prompt_id", how="anti") if reasons else questions
        )
        twins = near_duplicates(rest, settings.near_duplicates)
        reasons.append(twins.select("prompt_id", reason=pl.lit("near_duplicate")))
    if not reasons:
        return pl.DataFrame(schema={"prompt_id": pl.String, "reason": pl.String})
    return pl.concat(reasons).unique("prompt_id", keep="first", maintain_order=True)


def overlapping(questions: pl.DataFrame, tests: Tests, n: int, share: float) -> pl.DataFrame:
    """The prompts that hold at least `share` of the n-grams of some test text.

    Args:
        questions: (prompt_id, text), normalised.
        tests: the texts.
        n: words of an n-gram.
        share: between 0 and 1.
    """
    theirs = tests.grams(n)
    sizes = theirs.group_by("test").agg(size=pl.len())
    matches = []
    for at in range(0, len(questions), ROWS):
        mine = _ngrams(questions.slice(at, ROWS), n)
        shared = mine.join(theirs, on="gram").group_by("prompt_id", "test").agg(shared=pl.len())
        enough = shared.join(sizes, on="test").filter(pl.col("shared") >= share * pl.col("size"))
        matches.append(enough.select("prompt_id").unique())
    return pl.concat(matches) if matches else questions.select("prompt_id").clear()


def near_duplicates(questions: pl.DataFrame, likeness: float) -> pl.DataFrame:
    """The prompts that are like an earlier one, by the Jaccard likeness of their word runs.

    Args:
        questions: (prompt_id, text), normalised.
        likeness: between 0 and 1; MinHash estimates it.
    """
    seen = Seen(likeness)
    rows = questions.select("prompt_id", "text").iter_rows()
    twins = [key for key, text in rows if seen.is_like_earlier(text)]
    return pl.DataFrame({"prompt_id": twins}, schema={"prompt_id": pl.String})


class Seen:
    """Texts that came, to compare those that come later: by MinHash of their runs of words.

    Example:
        >>> seen = Seen(0.8)
        >>> [seen.is_like_earlier(text) for text in ("a b c d", "x y z", "a b c d")]
        [False, False, True]
    """

    def __init__(self, likeness: float) -> None:
        """Begin with none; texts whose Jaccard likeness is this or more are alike."""
        from datasketch import MinHash, MinHashLSH

        self._likeness = likeness
        self._empty = MinHash(num_perm=PERMUTATIONS)
        self._index = MinHashLSH(threshold=likeness, num_perm=PERMUTATIONS)
        self._kept: list[MinHash] = []

    def is_like_earlier(self, text: str) -> bool:
        """Whether a normalised text is like one that was kept; else it is kept from now on."""
        words = text.split()
        runs = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        sketch = self._empty.copy()
        sketch.update_batch([run.encode() for run in sorted(runs)])
        # The index offers what is probably alike; the sketches say how much.
        if any(sketch.jaccard(self._kept[n]) >= self._likeness for n in self._index.query(sketch)):
            return True
        self._index.insert(len(self._kept), sketch)
        self._kept.append(sketch)
        return False


def texts(batches: Iterable[list[dict[str, Any]]]) -> pl.Series | None:
    """The prompts of a test set, whatever its form: the first usual column that is there.

    Args:
        batches: its records.

    Returns:
        A text for each prompt; None where no column holds any.
    """
    column: str | None = None
    listed: list[str] = []
    for batch in batches:
        for record in batch:
            if column is None:
                column = next((name for name in PROMPTS if _said(record.get(name))), None)
            listed.append(_said(record.get(column or "")) or "")
    return pl.Series(listed, dtype=pl.String) if column else None


def _said(value: Any) -> str | None:
    """What a prompt asks: text, texts, or what the user says in messages."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(each, str) for each in value):
        return " ".join(value)
    turns = [each for each in value if isinstance(each, dict) and "content" in each]
    spoken = [each for each in turns if each.get("role", "user") == "user"]
    return " ".join(str(each["content"]) for each in spoken) if turns else None


def _ngrams(frame: pl.DataFrame, n: int) -> pl.DataFrame:
    """(key, gram): the different runs of n words in each row's text, as hashes."""
    key = frame.columns[0]
    words = frame.select(key, word=pl.col("text").str.split(" ")).explode("word")
    run = pl.concat_str([pl.col("word").shift(-k) for k in range(n)], separator=" ")
    whole = pl.col(key).shift(-(n - 1)) == pl.col(key)
    return words.select(key, gram=pl.when(whole).then(run.hash())).drop_nulls().unique()
