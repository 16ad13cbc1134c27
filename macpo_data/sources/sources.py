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
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from macpo_data import schema
from macpo_data.errors import DataError, first_line
from macpo_data.models import base as models
from macpo_data.recipe import (
    Columns,
    Data,
    FileData,
    More,
    PairsData,
    PartSpec,
    PKUData,
    Probe,
    WorldData,
)
from macpo_data.schema import MESSAGES, PROMPTS, UNUSABLE, Part
from macpo_data.world import world

# The order in which parts are settled: what is held out must stay clean whatever is trained on.
PARTS: tuple[Part, ...] = ("test", "d1", "d2")
LOCAL_SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
WORLD = "the embedded world"
TEXT_CHARS = 300  # of a row put aside
# What polars makes of messages in a column where another row holds plain text.
_FLATTENED = r'^\[?\{"(role|content)": '
_TURN = "\x1e"  # a control character that no text has; one that had it would be put aside

# A file or Hub dataset and its split; None where a file knows no splits. Parts that name the same
# origins share one shuffle.
Origin = tuple[str, str | None]
Place = tuple[Origin, ...]
Frames = dict[str, pl.DataFrame]


def read_parts(
    data: Data, seed: int, revisions: Mapping[str, str | None] = {}
) -> tuple[dict[Part, pl.DataFrame], pl.DataFrame]:
    """Draw d1, d2 and test, disjoint by prompt, and take the probe out of d1.

    Also returns the rows that cannot be used. Test is settled first, then d1, then d2. A row put
    aside stands under the first part, in that order, that looked at it.

    Args:
        data: what the recipe says about its data.
        seed: of the shuffle.
        revisions: the commit at which to read a Hub dataset, by its id; else `data.revision`.

    Raises:
        DataError: a dataset cannot be read, or holds too few usable rows.
    """
    files = {path: read_file(path) for path in all_paths(data) if is_local(path)}
    pools: dict[tuple[str, Place], pl.DataFrame] = {}  # usable rows, shuffled; taken from the top
    aside: dict[tuple[str, Place], pl.DataFrame] = {}
    taken: dict[str, Part] = {}
    parts: dict[Part, pl.DataFrame] = {part: schema.empty(PROMPTS) for part in (*PARTS, "probe")}
    for part, form, count, place in _draws(data, files):
        name = part if form is data else f"{part}.more"
        room = data.limit and data.limit - len(parts[part])
        if room == 0:
            continue
        # 1. The first part that names a place opens it.
        key = (name if form is not data else "", place)
        if key not in pools:
            rows = [_read(form, origin, seed, files, revisions) for origin in place]
            judged = _judge(pl.concat(rows), data.max_prompt_chars)
            pools[key], aside[key] = _shuffle(_usable(judged), seed), _put_aside(judged, part)
        # 2. What an earlier part took from another place is not drawn again.
        if name == "d2":
            parts["d1"], parts["probe"] = _without_probe(parts["d1"], data.probe)
            taken |= dict.fromkeys(parts["probe"]["prompt_id"], "probe")
        barred = taken
        if name == "d2" and data.overlap:
            barred = {id_: by for id_, by in taken.items() if by != "d1"}
        pool = _unless_taken(pools[key], barred)
        free = _usable(pool)
        aside[key] = pl.concat([aside[key], _put_aside(pool, part)])
        # 3. Take from the top. A limit alone asks for no more than there are.
        count = count or len(free)
        asked = min(count, room or count)
        if free.is_empty() or len(free) < asked:
            raise DataError(_too_few(data, name, place, asked, len(free), aside[key]))
        drawn = schema.check(free.head(asked), PROMPTS, f"data.{name}")
        pools[key] = free if name == "d1" and data.overlap else free.slice(asked)
        taken = dict.fromkeys(drawn["prompt_id"], part) | taken
        parts[part] = parts[part].vstack(drawn)
    return parts, schema.check(pl.concat(aside.values()), UNUSABLE, "unusable rows")


def _without_probe(d1: pl.DataFrame, probe: Probe) -> tuple[pl.DataFrame, pl.DataFrame]:
    """D1 without its last rows that have both answers, and those: the probe.

    Raises:
        DataError: nothing would be left of D1.
    """
    asked = probe.size(len(d1))
    if asked and asked >= len(d1):
        raise DataError(
            f"data.probe.count takes {asked} of D1's {len(d1)} rows and leaves none to train on; "
            f"set it to {len(d1) // 5} or less, or raise data.d1.count"
        )
    pairs = d1.drop_nulls(["chosen", "rejected"]).tail(asked)
    return d1.join(pairs, on="prompt_id", how="anti", maintain_order="left"), pairs


def _usable(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("reason").is_null())


def _unless_taken(pool: pl.DataFrame, taken: Mapping[str, Part]) -> pl.DataFrame:
    """Give those that another part has drawn a reason."""
    owner = pl.col("prompt_id").replace_strict(taken, default=None, return_dtype=pl.String)
    return pool.with_columns(reason="prompt_in_" + owner)


def mores(data: Data) -> list[More]:
    """The second datasets of its parts."""
    return [more for part in PARTS if (more := getattr(data, part).more)]


def all_paths(data: Data) -> list[str]:
    """Those of the parts, and of their second datasets."""
    return [*paths(data), *(more.path for more in mores(data))]


def paths(data: Data) -> list[str]:
    """Every file and Hub id that the parts are read from, each once."""
    if isinstance(data, WorldData):
        return []
    return list(dict.fromkeys(path for part in sorted(PARTS) for path in _part_paths(data, part)))


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


def preference_rows(raw: pl.DataFrame, columns: Columns, path: str) -> pl.DataFrame:
    """Any preference dataset in the one form, row for row: PROMPTS and why a row is of no use.

    Understands what `pairs` does, and besides each answer as one message (sharegpt), and HH's
    "Human: ... Assistant: ..." text.

    Raises:
        DataError: it lacks a column.
    """
    for name in (columns.chosen, columns.rejected):
        if name and isinstance(raw.schema.get(name), pl.Struct):
            raw = raw.with_columns(pl.concat_list(name))
    sides = [name for name in (columns.chosen, columns.rejected) if name]
    if columns.prompt not in raw.columns and all(raw.schema.get(n) == pl.String for n in sides):
        heads = raw.select(pl.col(sides).str.contains(r"^\s*Human:").all())
        if all(heads.row(0)):
            raw = raw.with_columns(_dialogue(pl.col(name)).alias(name) for name in sides)
    return _judge(_pairs(raw, columns, path), None)


def _part_paths(data: FileData, part: Part) -> list[str]:
    named = getattr(data, part).path or data.path
    return [named] if isinstance(named, str) else list(named or [])


def _places(data: Data, files: Frames) -> dict[Part, Place]:
    """Where each part comes from; parts with an equal place share its shuffle."""
    if isinstance(data, WorldData):
        odd = [f"data.{p}" for p in PARTS if getattr(data, p).path or getattr(data, p).split]
        if odd:
            raise DataError(f"{', '.join(odd)}: source world has no path or split; leave them out")
        places: dict[Part, Place] = dict.fromkeys(PARTS, ((WORLD, None),))
    else:
        places = {
            part: tuple(
                _origin(path, getattr(data, part).split, files) for path in _part_paths(data, part)
            )
            for part in PARTS
        }
        if bare := [part for part, place in places.items() if not place]:
            raise DataError(f"data.{bare[0]}.path is an empty list; name a file or a Hub dataset")
    drawn = {part: place for part, place in places.items() if part != "d2" or not data.overlap}
    shared = [part for part in drawn if list(drawn.values()).count(drawn[part]) > 1]
    if open_ends := [f"data.{part}.count" for part in shared if not getattr(data, part).count]:
        raise DataError(
            f"{_named(places[shared[0]])}: several parts are drawn from it, and each must say how "
            f"many rows it takes; set {', '.join(open_ends)}"
        )
    return places


def _draws(data: Data, files: Frames) -> Iterator[tuple[Part, Data | More, int | None, Place]]:
    """What is drawn, in order: of each part its rows, then those of its second dataset."""
    for part, place in _places(data, files).items():
        spec: PartSpec = getattr(data, part)
        yield part, data, spec.count, place
        if more := spec.more:
            yield part, more, more.count, (_origin(more.path, more.split or "train", files),)


def _origin(path: str, split: str | None, files: Frames) -> Origin:
    """A file or Hub dataset, and the split that counts for it."""
    if path not in files:
        return path, split or "train"
    # A file without a text column `split` is one split, whatever the recipe calls it.
    return path, split if files[path].schema.get("split") == pl.String else None


def _shuffle(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    order = list(range(len(rows)))
    random.Random(f"macpo prompts: {seed}").shuffle(order)
    return rows[order]


def _too_few(
    data: Data, part: str, place: Place, asked: int, there: int, aside: pl.DataFrame
) -> str:
    key = "data.limit" if asked == data.limit else f"data.{part}.count"
    what = f"{there} usable rows are left for it" if there else "no usable row is left for it"
    mend = f"set {key} to {there} or less" if there else "check data.source, split and columns"
    counts = aside["reason"].value_counts().sort(["count", "reason"], descending=[True, False])
    because = ", ".join(f"{n} {reason}" for reason, n in counts.iter_rows()) or "nothing"
    return (
        f"{_named(place)}: data.{part} asks for {asked or 'some'} rows, {what} "
        f"(put aside: {because}); {mend}, or set data.{part}.path to more"
    )


def _named(place: Place) -> str:
    return ", ".join(path + (f" ({split})" if split else "") for path, split in place)


def _put_aside(rows: pl.DataFrame, part: Part) -> pl.DataFrame:
    """The rows that have a reason, in the form in which they are kept."""
    row = pl.struct("prompt", "chosen", "rejected").struct.json_encode().str.head(TEXT_CHARS)
    return rows.drop_nulls("reason").select(pl.lit(part).alias("part"), "row", "reason", text=row)


def _read(
    data: Data | More, origin: Origin, seed: int, files: Frames, revisions: Mapping[str, str | None]
) -> pl.DataFrame:
    """The rows of an origin as (row, prompt, chosen, rejected, reason)."""
    path, split = origin
    mine = pl.lit(True)
    if isinstance(data, WorldData):
        every = [vars(example) for example in world.examples("task", seed=seed)]
        form = {k: v for k, v in PROMPTS.items() if k != "prompt_id"}
        rows = pl.DataFrame(every, schema={**form, "reason": pl.String()})
    elif path in files:
        rows = _one_form(data, files[path], path)
        mine = pl.lit(files[path]["split"] == split) if split else mine
    else:
        revision = revisions.get(path) or data.revision
        rows = _one_form(data, _read_hub(path, data.subset, split, revision), path)
    return rows.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64)).filter(mine)


def _read_hub(path: str, subset: str | None, split: str | None, revision: str) -> pl.DataFrame:
    import datasets

    try:
        read = datasets.load_dataset(path, data_dir=subset, split=split, revision=revision)
        frame = read.to_polars()
    except ValueError as error:  # how datasets says that it knows no such split or configuration
        raise DataError(
            f"dataset {path}: {first_line(error)}; check data.subset and the parts' split"
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
    except (OSError, ValueError) as error:  # a name that can be none
        why = getattr(error, "strerror", error)
        raise DataError(f"cannot read {path}: {why}; check the file") from None


def read_file(path: str) -> pl.DataFrame:
    """A parquet or JSONL file as it is.

    Raises:
        DataError: it cannot be read.
    """
    content = _read_bytes(path)
    try:
        if path.endswith(".gz"):
            content = gzip.decompress(content)
        if path.endswith(".parquet"):
            return pl.read_parquet(io.BytesIO(content))
        content = content.removeprefix(b"\xef\xbb\xbf")  # as Windows begins a text
        if content.lstrip()[:1] == b"[":
            return pl.read_json(io.BytesIO(content), infer_schema_length=None)
        return pl.read_ndjson(io.BytesIO(content), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {path}: {first_line(error)}; it is damaged, cut short or of another "
            f"kind than its name says ({', '.join(LOCAL_SUFFIXES)}): fetch it anew"
        ) from None


def _one_form(data: FileData | More, raw: pl.DataFrame, path: str) -> pl.DataFrame:
    """Bring a dataset's own form into (prompt, chosen, rejected, reason)."""
    if isinstance(data, PairsData):
        return _pairs(raw, data.columns, path)
    if isinstance(data, PKUData):
        return _pku(raw, data.preference, path)
    source = getattr(data, "source", "pairs")
    if source == "ultrachat":
        return _ultrachat(raw, path)
    return _hh(raw, path) if source == "hh_rlhf" else _pairs(raw, Columns(), path)


def _ultrachat(raw: pl.DataFrame, path: str) -> pl.DataFrame:
    """UltraChat: the conversation without its last answer, which is what a human would prefer."""
    _need(raw, ["messages"], path)
    turns = _messages(raw, "messages", "user", path)
    ends = pl.col("messages").list.last().struct
    answered = pl.col("messages").list.len() - (ends.field("role") == "assistant").cast(pl.UInt32)
    raw = pl.DataFrame({"messages": turns}).select(
        prompt=pl.col("messages").list.head(answered),
        chosen=pl.when(ends.field("role") == "assistant").then(ends.field("content")),
    )
    return _pairs(raw, Columns(rejected=None), path)


def _hh(raw: pl.DataFrame, path: str) -> pl.DataFrame:
    """HH-RLHF: raw text of two whole conversations, unless there is a column of prompts."""
    if "prompt" not in raw.columns:
        sides = ["chosen", "rejected"]
        _need(raw, sides, path, text=True)
        raw = raw.with_columns(_dialogue(pl.col(side)).alias(side) for side in sides)
    return _pairs(raw, Columns(), path)


def _dialogue(text: pl.Expr) -> pl.Expr:
    """Take HH's "Human: ... Assistant: ..." text apart; text before the first turn has no role."""
    text = "\n\n" + text.cast(pl.String).str.strip_chars_start()
    marked = text.str.replace_all(r"\n\n(Human|Assistant):", f"{_TURN}${{1}}:").str.split(_TURN)
    turn, speaker = pl.element(), r"^(Human|Assistant):"
    roles = {"Human": "user", "Assistant": "assistant"}
    role = turn.str.extract(speaker).replace_strict(roles, default="none")
    content = turn.str.replace(speaker, "")
    return marked.list.eval(pl.struct(role=role, content=content).filter(turn != ""))


def _pku(raw: pl.DataFrame, preference: str, path: str) -> pl.DataFrame:
    """PKU-SafeRLHF: two responses and which is better or safer, unless they are named already."""
    if "response_0" not in raw.columns:
        return _pairs(raw, Columns(), path)
    judged = f"{preference}_response_id"
    _need(raw, ["prompt", judged], path)
    _need(raw, ["response_0", "response_1"], path, text=True)
    if raw.schema[judged].is_nested():
        raise DataError(
            f"{path}: column {judged} is {raw.schema[judged]}, no 0 or 1; check the file"
        )
    first, second = pl.col("response_0"), pl.col("response_1")
    picked = pl.col(judged).cast(pl.Int64, strict=False)
    raw = raw.with_columns(
        chosen=pl.when(picked == 0).then(first).when(picked == 1).then(second),
        rejected=pl.when(picked == 0).then(second).when(picked == 1).then(first),
    )
    unjudged = ~picked.is_in([0, 1]).fill_null(False)
    reason = pl.when(raw.select(unjudged).to_series()).then(pl.lit("no_preference"))
    return _pairs(raw, Columns(), path).with_columns(reason=pl.coalesce(reason, "reason"))


def _pairs(raw: pl.DataFrame, columns: Columns, path: str) -> pl.DataFrame:
    """A prompt and two answers, each a string or a conversation that ends in the answer."""
    sides = {"chosen": columns.chosen, "rejected": columns.rejected}
    wanted = [name for name in sides.values() if name]
    has_prompt = columns.prompt in raw.columns
    if has_prompt and not set(wanted) & set(raw.columns):
        wanted = []  # a set of prompts alone: enough for d2 and test
    # Only conversations bring their prompt with them.
    implicit = wanted and all(raw.schema.get(n, pl.List) == pl.List for n in wanted)
    _need(raw, wanted if implicit else [columns.prompt, *wanted], path)

    nothing = pl.Series([None] * len(raw), dtype=MESSAGES)
    turns = {s: _messages(raw, n, "assistant", path) for s, n in sides.items() if n in wanted and n}
    turns["prompt"] = _messages(raw, columns.prompt, "user", path) if has_prompt else nothing
    frame = pl.DataFrame({name: turns.get(name, nothing) for name in ("prompt", *sides)})
    last = {side: pl.col(side).list.last().struct for side in sides}
    chosen_lead, rejected_lead = (
        pl.when(pl.col(s).list.len() > 1).then(pl.col(s).list.head(pl.col(s).list.len() - 1))
        for s in sides
    )
    wrong_end = pl.any_horizontal(last[s].field("role") != "assistant" for s in sides)
    # No answer is fine where the source has none; where it has some, a missing one is empty.
    blank = {side: pl.lit("" if side in turns else None, dtype=pl.String) for side in sides}
    answers = {s: pl.coalesce(last[s].field("content"), blank[s]) for s in sides}
    return frame.select(
        prompt=pl.coalesce(chosen_lead, rejected_lead, "prompt"),
        **answers,
        reason=pl.when(chosen_lead.ne_missing(rejected_lead))
        .then(pl.lit("prompt_differs"))
        .when(wrong_end)
        .then(pl.lit("not_alternating")),
    )


def _messages(raw: pl.DataFrame, name: str, role: str, path: str) -> pl.Series:
    """A column as messages without surrounding white space; text is one turn of `role`."""
    column, turn = pl.col(name), pl.element().struct
    kind = raw.schema[name]
    inner = kind.inner if isinstance(kind, pl.List) else None
    fields = dict(inner) if isinstance(inner, pl.Struct) else {}
    if kind in (pl.String, pl.Null):
        column = column.cast(pl.String)
        if raw.select(column.str.contains(_FLATTENED).any()).item():
            raise DataError(f"{path}: column {name} mixes text and message lists; make it one kind")
        one = pl.concat_list(pl.struct(role=pl.lit(role), content=column.str.strip_chars()))
        return raw.select(pl.when(column.is_not_null()).then(one).alias(name)).to_series()
    if inner == pl.Null:
        return raw[name].cast(MESSAGES)
    if any(fields.get(key) not in (pl.String, pl.Null) for key in ("role", "content")):
        raise DataError(
            f"{path}: column {name} is {kind}; it must be text or a list of {{role, content}}, "
            "name another in data.columns"
        )
    who, said = (turn.field(key).cast(pl.String).fill_null("") for key in ("role", "content"))
    as_message = pl.struct(role=who, content=said.str.strip_chars())
    return raw.select(column.list.eval(as_message)).to_series()


def _need(raw: pl.DataFrame, names: list[str], path: str, text: bool = False) -> None:
    """Refuse a dataset that lacks a column, or one in which it is no text."""
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
        "too_long": chars > pl.lit(max_chars, dtype=pl.Int64),
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
