"""Decontamination and deduplication: prompts that occur in a test set, near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from macpo_data.recipe.generation import Select

ROWS = 50_000  # prompts whose n-grams are in memory at once
SHINGLE = 3  # words that MinHash takes as one
PERMUTATIONS = 128


def question(prompt: pl.Expr) -> pl.Expr:
    """What the user says in a message list, normalised: lower case, words and single spaces."""
    user_texts = prompt.list.eval(
        pl.element().struct.field("content").filter(pl.element().struct.field("role") == "user")
    )
    return normalised(user_texts.list.join(" "))


def normalised(text: pl.Expr) -> pl.Expr:
    """Text without case, punctuation and spacing."""
    return text.str.to_lowercase().str.replace_all(r"[^\w]+", " ").str.strip_chars()


def excluded(prompts: pl.DataFrame, tests: Sequence[pl.Series], settings: Select) -> pl.DataFrame:
    """The prompts that may not be learned from.

    Args:
        prompts: PROMPTS.
        tests: texts of each test set, as they are.
        settings: n-gram length, shares and the likeness of near-duplicates.

    Returns:
        (prompt_id, reason), the first reason that holds: in_test_set, overlaps_test_set,
        near_duplicate.
    """
    questions = prompts.select("prompt_id", text=question(pl.col("prompt")))
    reasons = []
    if tests:
        test_texts = pl.concat([series.rename("text") for series in tests]).to_frame()
        test_texts = (
            test_texts.select(normalised(pl.col("text"))).unique().filter(pl.col("text") != "")
        )
        same = questions.join(test_texts, on="text", how="semi")
        reasons.append(same.select("prompt_id", reason=pl.lit("in_test_set")))
        ids = overlapping(questions, test_texts["text"], settings.ngram, settings.ngram_share)
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


def overlapping(questions: pl.DataFrame, tests: pl.Series, n: int, share: float) -> pl.DataFrame:
    """The prompts that hold at least `share` of the n-grams of some test text.

    Args:
        questions: (prompt_id, text), normalised.
        tests: normalised texts; one of fewer than n words has no n-gram.
        n: words of an n-gram.
        share: between 0 and 1.
    """
    theirs = _ngrams(pl.DataFrame({"test": pl.int_range(len(tests), eager=True), "text": tests}), n)
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
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=likeness, num_perm=PERMUTATIONS)
    kept: dict[str, MinHash] = {}
    twins = []
    for key, text in questions.select("prompt_id", "text").iter_rows():
        words = text.split()
        runs = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([run.encode() for run in sorted(runs)])
        # The index offers what is probably alike; the sketches say how much.
        if any(sketch.jaccard(kept[other]) >= likeness for other in index.query(sketch)):
            twins.append(key)
        else:
            kept[key] = sketch
            index.insert(key, sketch)
    return pl.DataFrame({"prompt_id": twins}, schema={"prompt_id": pl.String})


def texts(table: pl.DataFrame) -> pl.Series | None:
    """The prompts of a test set, whatever its form: the first usual column that is there."""
    for name in ("prompt", "prompts", "instruction", "question", "turns", "messages", "text"):
        dtype = table.schema.get(name)
        if dtype == pl.String:
            return table[name]
        if isinstance(dtype, pl.List) and dtype.inner == pl.String:
            return table.select(pl.col(name).list.join(" ")).to_series()
        if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
            fields = {field.name for field in dtype.inner.fields}
            if {"role", "content"} <= fields:
                return table.select(question(pl.col(name))).to_series()
            if "content" in fields:
                content = pl.element().struct.field("content")
                return table.select(pl.col(name).list.eval(content).list.join(" ")).to_series()
    return None


def _ngrams(frame: pl.DataFrame, n: int) -> pl.DataFrame:
    """(key, gram): the different runs of n words in each row's text, as hashes."""
    key = frame.columns[0]
    words = frame.select(key, word=pl.col("text").str.split(" ")).explode("word")
    run = pl.concat_str([pl.col("word").shift(-k) for k in range(n)], separator=" ")
    whole = pl.col(key).shift(-(n - 1)) == pl.col(key)
    return words.select(key, gram=pl.when(whole).then(run.hash())).drop_nulls().unique()
