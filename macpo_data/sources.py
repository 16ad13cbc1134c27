"""Datasets in, prompts out: every source gives the same three parts in the same columns.

A reader turns its dataset's own form into one of two: a prompt with two answers, or two whole
conversations. From there all rows go one way: conversations are taken apart, unusable rows are put
aside with a reason, and the parts are drawn. Nothing after this file knows which source it was.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from macpo_data import models, schema, world
from macpo_data.errors import DataError
from macpo_data.recipe import Columns, Data, HHData, PairsData, PKUData, WorldData
from macpo_data.schema import MESSAGES, PROMPTS, UNUSABLE, Part

# The order in which parts are settled: what is held out must stay clean whatever is trained on.
PARTS: tuple[Part, ...] = ("test", "d1", "d2")
LOCAL_SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
WORLD = "the embedded world"
TEXT_CHARS = 300  # of a row put aside
# What polars makes of a message list in a column where another row holds plain text.
_FLATTENED = r'^\[\{"(role|content)": '

_TURN = "\x1e"  # a control character that no text has; one that had it would be put aside

# A file or Hub dataset and its split; None where a file knows no splits. Parts that name the same
# origins share one shuffle.
Origin = tuple[str, str | None]
Frames = dict[str, pl.DataFrame]


def read_parts(
    data: Data, seed: int, revisions: Mapping[str, str | None] = {}
) -> tuple[dict[Part, pl.DataFrame], pl.DataFrame]:
    """Draw d1, d2 and test, disjoint by prompt; also return the rows that cannot be used.

    Test is settled first, then d1, then d2. A row put aside stands under the first part, in that
    order, that looked at it.

    Args:
        data: what the recipe says about its data.
        seed: of the shuffle.
        revisions: the commit at which to read a Hub dataset, by its id; else `data.revision`.

    Raises:
        DataError: a dataset cannot be read, or holds too few usable rows.
    """
    # 1. Where each part comes from.
    files = {path: _read_file(path) for path in paths(data) if is_local(path)}
    origins = {part: _origins(data, part, files) for part in PARTS}
    _check_counts(data, origins)

    # 2. One shuffled pool per place: usable rows, each prompt once.
    pools: dict[tuple[Origin, ...], pl.DataFrame] = {}
    aside = [schema.empty(UNUSABLE)]
    why: dict[tuple[Origin, ...], list[str]] = {}
    for part, place in origins.items():
        if place not in pools:
            rows = _read_place(data, place, seed, files, revisions)
            rows = _judge(rows, data.max_prompt_chars)
            good, bad = rows.filter(pl.col("reason").is_null()), rows.drop_nulls("reason")
            aside.append(_unusable(bad, part))
            why[place] = bad["reason"].to_list()
            if good.is_empty():
                raise DataError(
                    f"{_named(place)}: no usable row of {len(rows)}{_tally(why[place])}; "
                    "check data.source, data.columns and data.max_prompt_chars"
                )
            order = list(range(len(good)))
            random.Random(f"macpo prompts: {seed}").shuffle(order)
            pools[place] = good[order]

    # 3. Each part takes from the top of its pool what no part before it has.
    taken: dict[str, Part] = {}
    parts: dict[Part, pl.DataFrame] = {}
    for part, place in origins.items():
        owner = pl.col("prompt_id").replace_strict(taken, default=None, return_dtype=pl.String)
        pool = pools[place].with_columns(reason="prompt_in_" + owner)
        clash, free = pool.drop_nulls("reason"), pool.filter(pl.col("reason").is_null())
        aside.append(_unusable(clash, part))
        why[place] += clash["reason"].to_list()
        asked = _asked(data, part, len(free))
        if len(free) < asked or free.is_empty():
            raise DataError(_too_few(data, part, place, asked, len(free), why[place]))
        drawn, pools[place] = free.head(asked), free.slice(asked)
        if part == "d1" and drawn["chosen"].null_count() + drawn["rejected"].null_count():
            raise DataError(
                f"{_named(place)}: data.d1 needs human answers, chosen and rejected; "
                "set data.columns or data.d1.path"
            )
        taken |= dict.fromkeys(drawn["prompt_id"], part)
        parts[part] = schema.check(drawn, PROMPTS, f"data.{part}")
    return parts, schema.check(pl.concat(aside), UNUSABLE, "unusable rows")


def paths(data: Data) -> list[str]:
    """Every file and Hub id that the parts are read from, each once."""
    if isinstance(data, WorldData):
        return []
    return list(dict.fromkeys(path for part in PARTS[::-1] for path in _part_paths(data, part)))


def is_local(path: str) -> bool:
    """Whether a path of the recipe is a file here, and not a dataset on the Hub."""
    looks_local = path.startswith((".", "/", "~")) or path.endswith(LOCAL_SUFFIXES)
    return looks_local or Path(path).exists()


def resolve(path: str, revision: str) -> str:
    """Pin a path: the commit that a Hub dataset's revision names now, or a file's sha256.

    Raises:
        DataError: it is not there, or the network is not.
    """
    if is_local(path):
        return f"sha256:{hashlib.sha256(_read_bytes(path)).hexdigest()}"
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(path, revision=revision).sha)
    except Exception as error:  # every way of not reaching the Hub has its own class
        raise DataError(models.unreachable("dataset", path, error)) from None


def _part_paths(data: HHData | PKUData | PairsData, part: Part) -> list[str]:
    named = getattr(data, part).path or data.path
    return [named] if isinstance(named, str) else list(named or [])


def _origins(data: Data, part: Part, files: Frames) -> tuple[Origin, ...]:
    """Where a part comes from; each file of a list counts by itself."""
    spec = getattr(data, part)
    if isinstance(data, WorldData):
        if spec.path or spec.split:
            raise DataError(f"data.{part}: source world has no path or split; leave both out")
        return ((WORLD, None),)
    # A file that has no column `split` is one split by itself, whatever the recipe calls it.
    whole = {path for path, frame in files.items() if "split" not in frame.columns}
    split_of = {p: None if p in whole else spec.split for p in _part_paths(data, part)}
    if not split_of:
        raise DataError(f"data.{part}.path is an empty list; name a file or a Hub dataset")
    return tuple((p, split if p in files else split or "train") for p, split in split_of.items())


def _check_counts(data: Data, origins: dict[Part, tuple[Origin, ...]]) -> None:
    """Refuse parts that share a place where one of them would take all of it."""
    places = list(origins.values())
    open_ends = [
        f"data.{part}.count"
        for part, place in origins.items()
        if places.count(place) > 1 and getattr(data, part).count is None
    ]
    if open_ends:
        raise DataError(
            f"several parts are drawn from {_named(origins[PARTS[0]])}; set {', '.join(open_ends)}"
            if len(set(places)) == 1
            else f"parts with the same path and split need a number of rows; "
            f"set {', '.join(open_ends)}"
        )


def _asked(data: Data, part: Part, available: int) -> int:
    """How many rows a part takes. A limit without a count asks for no more than there are."""
    count = getattr(data, part).count or available
    return min(count, data.limit or count)


def _too_few(
    data: Data, part: Part, place: tuple[Origin, ...], asked: int, there: int, why: list[str]
) -> str:
    by = "data.limit" if asked == data.limit else f"data.{part}.count"
    mend = f"set {by} to {there} or less, or" if there else "take fewer for the other parts, or"
    return (
        f"{_named(place)}: data.{part} asks for {asked} rows ({by}), {there} usable prompts are "
        f"left for it{_tally(why)}; {mend} set data.{part}.path to more data"
    )


def _named(place: tuple[Origin, ...]) -> str:
    return ", ".join(path + (f" ({split})" if split else "") for path, split in place)


def _tally(reasons: list[str]) -> str:
    """Say how many rows were put aside and why."""
    counts = pl.Series("reason", reasons, dtype=pl.String).value_counts(sort=True)
    rows = sorted(counts.iter_rows(), key=lambda row: (-row[1], row[0]))
    return f" (put aside: {', '.join(f'{n} {reason}' for reason, n in rows)})" if rows else ""


def _unusable(rows: pl.DataFrame, part: Part) -> pl.DataFrame:
    return rows.select(pl.lit(part).alias("part"), "row", "reason", "text")


# ------------------------------------------------------------------------------ reading


def _read_place(
    data: Data,
    place: tuple[Origin, ...],
    seed: int,
    files: Frames,
    revisions: Mapping[str, str | None],
) -> pl.DataFrame:
    """All rows of a place as (row, prompt, chosen, rejected, reason, text), nothing judged yet."""
    if isinstance(data, WorldData):
        every = [vars(example) for example in world.examples("task", seed=seed)]
        frame = pl.DataFrame(every, schema={**PROMPTS, "reason": pl.String()}, strict=False)
        return frame.with_row_index("row").with_columns(
            pl.col("row").cast(pl.Int64), text=pl.lit("")
        )
    frames = []
    for path, split in place:
        if path in files:
            raw = files[path].with_row_index("macpo_row")
            raw = raw.filter(pl.col("split") == split) if split else raw
        else:
            revision = revisions.get(path) or data.revision
            raw = _read_hub(path, data.subset, split, revision).with_row_index("macpo_row")
        shown = raw.drop("macpo_row")
        text = shown.select(pl.struct(pl.all()).struct.json_encode().str.head(TEXT_CHARS))
        rows = _reader(data)(raw, f"{path}: ")
        frames.append(rows.with_columns(row=raw["macpo_row"].cast(pl.Int64), text=text.to_series()))
    return pl.concat(frames)


def _read_hub(path: str, subset: str | None, split: str | None, revision: str) -> pl.DataFrame:
    import datasets

    try:
        read = datasets.load_dataset(path, data_dir=subset, split=split, revision=revision)
        frame = read.to_polars()
    except ValueError as error:  # how datasets says that it knows no such split or configuration
        raise DataError(
            f"dataset {path}: {_first_line(error)}; check data.subset and the parts' split"
        ) from None
    except Exception as error:  # every way of not reaching the Hub has its own class
        raise DataError(models.unreachable("dataset", path, error)) from None
    assert isinstance(frame, pl.DataFrame)  # to_polars gives an iterator only when asked to
    return frame


def _read_bytes(path: str) -> bytes:
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"{path} is a folder; name its files, such as {path.rstrip('/')}/x.parquet")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"no file {path}; check data.path, which starts at this folder") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the file") from None


def _read_file(path: str) -> pl.DataFrame:
    content = _read_bytes(path)
    try:
        if path.endswith(".gz"):
            content = gzip.decompress(content)
        if path.endswith(".parquet"):
            return pl.read_parquet(io.BytesIO(content))
        if content.lstrip()[:1] == b"[":
            return pl.read_json(io.BytesIO(content), infer_schema_length=None)
        return pl.read_ndjson(io.BytesIO(content), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {path}: {_first_line(error)}; it is damaged, cut short or of another "
            f"kind than its name says ({', '.join(LOCAL_SUFFIXES)}): fetch it anew"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


# ------------------------------------------------------------------------------ one form


def _reader(data: HHData | PKUData | PairsData) -> Callable[[pl.DataFrame, str], pl.DataFrame]:
    if isinstance(data, PairsData):
        return lambda raw, where: _pairs(raw, data.columns, where)
    if isinstance(data, PKUData):
        return lambda raw, where: _pku(raw, data.preference, where)
    return _hh


def _hh(raw: pl.DataFrame, where: str) -> pl.DataFrame:
    """HH-RLHF: raw text of two whole conversations, unless there is a column of prompts."""
    if "prompt" not in raw.columns:
        raw = _texts(raw, ["chosen", "rejected"], where)
        raw = raw.with_columns(_dialogue(pl.col(side)).alias(side) for side in ("chosen", "rejected"))
    return _pairs(raw, Columns(), where)


def _dialogue(text: pl.Expr) -> pl.Expr:
    """Take HH's "Human: ... Assistant: ..." text apart; text before the first turn has no role."""
    text = "\n\n" + text.str.strip_chars_start()
    marked = text.str.replace_all(r"\n\n(Human|Assistant):", f"{_TURN}${{1}}:").str.split(_TURN)
    turn = pl.element()
    role = (
        pl.when(turn.str.starts_with("Human:"))
        .then(pl.lit("user"))
        .when(turn.str.starts_with("Assistant:"))
        .then(pl.lit("assistant"))
        .otherwise(pl.lit("none"))
    )
    content = turn.str.replace(r"^(Human|Assistant):", "")
    return marked.list.eval(pl.struct(role=role, content=content).filter(turn != ""))


def _pku(raw: pl.DataFrame, preference: str, where: str) -> pl.DataFrame:
    """PKU-SafeRLHF: two responses and which is better or safer, unless they are named already."""
    if "response_0" not in raw.columns:
        return _pairs(raw, Columns(), where)
    judged = f"{preference}_response_id"
    _need(raw, ["prompt", judged], where)
    raw = _texts(raw, ["response_0", "response_1"], where)
    first, second = pl.col("response_0"), pl.col("response_1")
    picked = pl.col(judged).cast(pl.String).cast(pl.Int64, strict=False)
    raw = raw.with_columns(
        chosen=pl.when(picked == 0).then(first).when(picked == 1).then(second),
        rejected=pl.when(picked == 0).then(second).when(picked == 1).then(first),
    )
    unjudged = ~picked.is_in([0, 1]).fill_null(False)
    reason = pl.when(raw.select(unjudged).to_series()).then(pl.lit("no_preference"))
    return _pairs(raw, Columns(), where).with_columns(reason=pl.coalesce(reason, "reason"))


def _pairs(raw: pl.DataFrame, columns: Columns, where: str) -> pl.DataFrame:
    """A prompt and two answers, each a string or a conversation that ends in the answer."""
    wanted = [name for name in (columns.chosen, columns.rejected) if name]
    if columns.prompt in raw.columns and not set(wanted) & set(raw.columns):
        wanted = []  # a set of prompts alone: enough for d2 and test
    sides = {n: _text_or_messages(raw, n, where) for n in wanted if n in raw.columns}
    implicit = bool(sides) and all(side.dtype == MESSAGES for side in sides.values())
    _need(raw, wanted if implicit else [columns.prompt, *wanted], where)

    frame = pl.DataFrame({"given": pl.Series([None] * len(raw), dtype=MESSAGES)})
    if columns.prompt in raw.columns:
        given = _text_or_messages(raw, columns.prompt, where)
        if given.dtype == pl.String:
            as_turn = pl.struct(role=pl.lit("user"), content=given)
            given = frame.select(pl.when(given.is_not_null()).then(pl.concat_list(as_turn)))["role"]
        frame = frame.with_columns(given=given)
    for side, name in (("chosen", columns.chosen), ("rejected", columns.rejected)):
        said = sides.get(name or "", pl.Series([None] * len(raw), dtype=pl.String))
        frame = frame.with_columns(_side(said, side))
    # No answer is fine where the source has none; where it has some, a missing one is empty.
    names = {"chosen": columns.chosen, "rejected": columns.rejected}
    return frame.select(
        prompt=pl.coalesce("chosen_lead", "rejected_lead", "given"),
        **{s: pl.col(s).fill_null("") if n in sides else s for s, n in names.items()},
        reason=pl.when(pl.lit(implicit) & pl.col("chosen_lead").ne_missing(pl.col("rejected_lead")))
        .then(pl.lit("prompt_differs"))
        .when(~pl.col("chosen_ends") | ~pl.col("rejected_ends"))
        .then(pl.lit("not_alternating")),
    )


def _side(said: pl.Series, side: str) -> pl.DataFrame:
    """One side's answer, the turns before it (null if none), and whether the assistant ends it."""
    if said.dtype == pl.String:
        lead = pl.lit(None, dtype=MESSAGES)
        return said.to_frame(side).with_columns(
            lead.alias(f"{side}_lead"), pl.lit(True).alias(f"{side}_ends")
        )
    turns = pl.col("turns")
    lead = turns.list.head(turns.list.len().cast(pl.Int64) - 1)
    ends = turns.list.last().struct.field("role").eq_missing("assistant")
    return said.to_frame("turns").select(
        turns.list.last().struct.field("content").alias(side),
        pl.when(lead.list.len() > 0).then(lead).alias(f"{side}_lead"),
        (ends | (turns.list.len().fill_null(0) == 0)).alias(f"{side}_ends"),
    )


def _text_or_messages(raw: pl.DataFrame, name: str, where: str) -> pl.Series:
    """A column as text or as messages, stripped of surrounding white space."""
    column = raw[name]
    kind = column.dtype
    if kind == pl.Null:
        return column.cast(pl.String)
    if kind == pl.String:
        if column.str.contains(_FLATTENED).any():
            raise DataError(f"{where}column {name} mixes text and message lists; make it one kind")
        return column.str.strip_chars()
    inner = kind.inner if isinstance(kind, pl.List) else None
    if inner == pl.Null:
        return column.cast(MESSAGES)
    fields = dict(inner) if isinstance(inner, pl.Struct) else {}
    if any(fields.get(key) not in (pl.String, pl.Null) for key in ("role", "content")):
        raise DataError(
            f"{where}column {name} is {kind}; it must be text or a list of {{role, content}}, "
            "name another in data.columns"
        )
    turn = pl.element().struct
    role, content = (turn.field(k).cast(pl.String).fill_null("") for k in ("role", "content"))
    as_message = pl.struct(role=role, content=content.str.strip_chars())
    return raw.select(pl.col(name).list.eval(as_message)).to_series()


def _texts(raw: pl.DataFrame, names: list[str], where: str) -> pl.DataFrame:
    """Refuse a frame in which one of these columns is missing or no text."""
    _need(raw, names, where)
    odd = [n for n in names if raw[n].dtype not in (pl.String, pl.Null)]
    if odd:
        raise DataError(f"{where}column {odd[0]} is {raw[odd[0]].dtype}, not text; check data.source")
    return raw.with_columns(pl.col(names).cast(pl.String))


def _need(raw: pl.DataFrame, names: list[str], where: str) -> None:
    missing = [name for name in names if name not in raw.columns]
    if missing:
        has = ", ".join(name for name in raw.columns if name != "macpo_row")
        raise DataError(
            f"{where}no column {', '.join(missing)} (it has {has}); check data.source, or map the "
            "columns with source: pairs and data.columns"
        )


# ------------------------------------------------------------------------------ judging


def _judge(rows: pl.DataFrame, max_chars: int | None) -> pl.DataFrame:
    """Give each row its prompt_id and, if it cannot be used, the first reason that applies."""
    turn = pl.element().struct
    contents = pl.col("prompt").list.eval(turn.field("content"))
    letters = {"system": "s", "user": "u", "assistant": "a"}
    roles = pl.col("prompt").list.eval(turn.field("role").replace_strict(letters, default="?"))
    chars = contents.list.eval(pl.element().str.len_chars()).list.sum()
    empty_turn = contents.list.eval(pl.element() == "").list.any()
    reasons = {
        "prompt_differs": pl.col("reason") == "prompt_differs",
        "empty_prompt": (pl.col("prompt").list.len().fill_null(0) == 0) | empty_turn,
        "no_preference": pl.col("reason") == "no_preference",
        "empty_chosen": pl.col("chosen") == "",
        "empty_rejected": pl.col("rejected") == "",
        "same_sides": pl.col("chosen") == pl.col("rejected"),
        "not_alternating": (pl.col("reason") == "not_alternating")
        | ~roles.list.join("").str.contains(r"^s?(ua)*u$"),
        "too_long": chars > (max_chars or 2**62),
    }
    first = [pl.when(holds).then(pl.lit(reason)) for reason, holds in reasons.items()]
    rows = rows.with_columns(reason=pl.coalesce(first))
    # Twins among the usable only: a broken row must not cost a whole one its place.
    ids = [
        None if reason else schema.prompt_id(prompt)
        for prompt, reason in zip(rows["prompt"].to_list(), rows["reason"], strict=True)
    ]
    rows = rows.with_columns(prompt_id=pl.Series(ids, dtype=pl.String))
    twin = pl.col("prompt_id").is_not_null() & ~pl.col("prompt_id").is_first_distinct()
    return rows.with_columns(
        reason=pl.when(twin).then(pl.lit("duplicate_prompt")).otherwise("reason")
    )
