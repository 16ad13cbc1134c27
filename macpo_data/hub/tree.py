"""A round's pairs as files for the Hub: the same tree for a folder and for a repository.

`render_step` writes what belongs to one learner of one round, under names that carry a hash of
their content. `assemble` adds what speaks of all rounds: the card, LLaMA-Factory's
dataset_info.json, and macpo/index.json, from which the next push learns what is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from macpo_data import prompts
from macpo_data.errors import StoreError
from macpo_data.hub.card import card, measures, statistics
from macpo_data.hub.index import INDEX, Config, Entry, Index, adapters_repo, config_name, owned
from macpo_data.plan import Plan, Policy, Step
from macpo_data.recipe import Recipe, digest, read_template, text_files
from macpo_data.schema import (
    CANDIDATES,
    PAIRS,
    PUBLISHED,
    PUBLISHED_CANDIDATES,
    PUBLISHED_FULL,
    PUBLISHED_MESSAGES,
    PUBLISHED_SFT,
    PUBLISHED_SHAREGPT,
    Message,
    Table,
    check,
    prompt_id,
)
from macpo_data.sources.places import all_paths
from macpo_data.store.pins import Lock
from macpo_data.store.store import Manifest, Store, sha256

# Raise it when the same round would be rendered otherwise.
RENDER_FORMAT = 2
BATCH_ROWS = 10_000  # in memory at once
SHARD_ROWS = 250_000  # per file


def identity(plan: Plan, store: Store, step: Step, candidates: bool, licence: str | None) -> str:
    """Name what a rendering of a step would contain, without rendering it.

    Raises:
        StoreError: the step's dataset is not finished.
    """
    content = store.content(plan.name(step))
    if content is None:
        raise StoreError(f"{step} is not finished; run `macpo gen --round {step.round}`")
    recipe = plan.recipe.identity()
    return digest([RENDER_FORMAT, plan.name(step), content, recipe, candidates, licence])


def render_step(
    plan: Plan,
    store: Store,
    step: Step,
    to: Path,
    *,
    repo: str | None = None,
    candidates: bool = False,
    licence: str | None = None,
) -> Entry:
    """Write all files of one learner's dataset of one round under `to`.

    Args:
        plan: of the recipe.
        store: where the step's finished dataset is.
        step: a gen step.
        to: an empty folder.
        repo: the dataset's id on the Hub, for the place of its adapters.
        candidates: whether to add all candidates with their scores.
        licence: of the source, if it is known.

    Raises:
        StoreError: the dataset is not finished, or damaged.
    """
    name, source = config_name(step.round, step.learner), plan.name(step)
    kept = ["pairs.parquet", *(["candidates.parquet", "dropped.parquet"] if candidates else [])]
    manifest = store.verify(source, *kept)
    folder = store.path(source)

    forms: dict[str, tuple[Table, Callable[[pl.DataFrame], pl.DataFrame]]]
    rows = partial(_published, step=step, writers=_writers(plan, store))
    preferences = has_rejected(plan, step)
    if preferences:
        forms = {"": (PUBLISHED, rows), "_full": (PUBLISHED_FULL, _full)}
        forms["_sharegpt"] = PUBLISHED_SHAREGPT, _sharegpt
    else:
        inner = _gone_on_from(folder / "pairs.parquet")
        out = _left_out(store.read(source, "dropped.parquet"))
        whole = partial(_conversations, inner=inner, out=out)
        forms = {"": (PUBLISHED_SFT, lambda pairs: _completions(rows(pairs)))}
        forms["_messages"] = PUBLISHED_MESSAGES, whole
    shards = {suffix: Shards(to, f"{name}{suffix}", table) for suffix, (table, _) in forms.items()}
    measured: list[pl.DataFrame] = []
    sample: dict[str, Any] = {}
    for pairs in _batches(folder / "pairs.parquet"):
        pairs = check(pairs, PAIRS, source)
        measured.append(measures(pairs))
        sample = sample or pairs.row(0, named=True)
        for suffix, (_, form) in forms.items():
            shards[suffix].write(form(pairs))
    if candidates and manifest["summary"]["candidates"]:
        shards["_candidates"] = Shards(to, f"{name}_candidates", PUBLISHED_CANDIDATES)
        told = _asked(plan, store, source, manifest)
        for batch in _batches(folder / "candidates.parquet"):
            found = check(batch, CANDIDATES, source)
            found = found.join(told, on="prompt_id", how="left", maintain_order="left")
            shards["_candidates"].write(found)
    configs = {f"{name}{suffix}": each.close() for suffix, each in shards.items()}

    # What `macpo pull` puts back into a store, as it is there.
    own = to / "macpo" / name
    (own / source).mkdir(parents=True)
    for file in ("manifest.json", *kept):
        shutil.copyfile(folder / file, own / source / file)
    starts = _starts(plan, store, step, repo)
    pins = _pins(plan.recipe, store)
    (own / "adapters.json").write_bytes(_json(starts))
    (own / "lock.json").write_bytes(_json(pins))
    _write_recipe(plan.recipe, own)

    facts = statistics(pl.concat(measured), sample) | {
        "manifest": {k: v for k, v in manifest.items() if k not in ("recipe", "inputs", "created")},
        "name": source,
        "agents": [_voice(plan, store, policy) for policy in step.policies],
        "learner_base": plan.recipe.agents[step.learner].base,
        "starts": starts,
        "data": plan.recipe.read("data"),
        "sources": all_paths(plan.recipe.data),
        "pins": pins["data"],
        "dpo": plan.recipe.read("dpo"),
        "preferences": preferences,
        "licence": licence,
    }
    files = {str(p.relative_to(to)): sha256(p) for p in sorted(to.rglob("*")) if p.is_file()}
    return {
        "round": step.round,
        "learner": step.learner,
        "main": step.learner == plan.recipe.students[0],
        "tag": f"round-{step.round}",
        "identity": identity(plan, store, step, candidates, licence),
        "files": {path: digest_ for path, digest_ in files.items() if path.startswith(owned(name))},
        "configs": configs,
        "facts": facts,
    }


def assemble(index: Index, repo: str | None, suffix: str = "") -> dict[str, bytes]:
    """The files that speak of all rounds: card, dataset_info.json, index.

    Args:
        index: all that the repository holds.
        repo: its id on the Hub; None for a folder that is not meant for it.
        suffix: of the default configuration; `_full` on the branch for open-instruct.
    """
    info = {}
    for name, entry in sorted(index.items()):
        preferences = f"{name}_sharegpt" in entry["configs"]
        config = f"{name}_sharegpt" if preferences else f"{name}_messages"
        ranked = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
        shape = {
            "formatting": "sharegpt",
            **({"ranking": True} if preferences else {}),
            "columns": ranked if preferences else {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
        if repo is not None:
            info[name] = {"hf_hub_url": repo, "subset": config, **shape}
        # A copy of the tree on disk is read by its folder: LLaMA-Factory takes all files in it.
        folder = str(Path(entry["configs"][config]["files"][0]).parent)
        info[f"{name}_local"] = {"file_name": folder, **shape}
    return {
        "README.md": card(index, repo, suffix).encode(),
        "dataset_info.json": _json(info),
        INDEX: _json({name: index[name] for name in sorted(index)}, sort_keys=False),
    }


class Shards:
    """One configuration's parquet files, written batch by batch."""

    def __init__(self, root: Path, name: str, table: Table) -> None:
        """Nothing is written yet."""
        self.table = table
        self._root, self._folder = root, root / "data" / name
        self._folder.mkdir(parents=True)
        self._writer: Any = None
        self._rows: list[int] = []  # of each file

    def write(self, frame: pl.DataFrame) -> None:
        """Add rows; a file is closed when it is full."""
        import pyarrow.parquet as pq

        schema = _arrow_schema(self.table)
        rows = check(frame, self.table, self._folder.name)
        arrow = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)
        if self._writer is None or self._rows[-1] + len(rows) > SHARD_ROWS:
            self._shut()
            self._writer = pq.ParquetWriter(
                self._part(len(self._rows)), schema, compression="zstd", write_page_index=True
            )
            self._rows.append(0)
        self._writer.write_table(arrow)
        self._rows[-1] += len(rows)

    def close(self) -> Config:
        """Give the files their names, which carry a hash of the content."""
        import pyarrow.parquet as pq

        if self._writer is None:
            self.write(pl.DataFrame(schema=self.table))
        self._shut()
        files, size, download = [], 0, 0
        count = len(self._rows)
        for at in range(count):
            part = self._part(at)
            meta = pq.read_metadata(part)
            size += sum(meta.row_group(g).total_byte_size for g in range(meta.num_row_groups))
            download += part.stat().st_size
            name = f"train-{at:05d}-of-{count:05d}-{sha256(part)[:12]}.parquet"
            files.append(str(part.replace(self._folder / name).relative_to(self._root)))
        return {
            "files": files,
            "features": [_feature(name, dtype) for name, dtype in self.table.items()],
            "rows": sum(self._rows),
            "bytes": size,
            "download": download,
        }

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}"

    def _shut(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _batches(path: Path) -> Iterator[pl.DataFrame]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


def _asked(plan: Plan, store: Store, source: str, manifest: Manifest) -> pl.DataFrame:
    """(prompt_id, prompt) of everything that the candidates answer."""
    if "turns.parquet" in manifest["files"]:
        return store.read(source, "turns.parquet")
    columns = ["prompt_id", "prompt"]
    asked = pl.read_parquet(store.path(source) / "pairs.parquet", columns=columns)
    known = store.read(plan.prompts_name, "d2.parquet").select(columns)
    return pl.concat([asked, known]).unique("prompt_id")


def _published(pairs: pl.DataFrame, step: Step, writers: pl.DataFrame) -> pl.DataFrame:
    for side in ("chosen", "rejected"):
        known = writers.rename({c: f"{side}_{c}" for c in writers.columns})
        pairs = pairs.join(known, on=f"{side}_policy", how="left", maintain_order="left")
    return pairs.with_columns(
        round=pl.lit(step.round, pl.Int64),
        learner=pl.lit(step.learner),
        chosen_text="chosen",
        rejected_text="rejected",
        chosen=pl.concat_list(_answer("chosen")),
        rejected=pl.concat_list(_answer("rejected")),
    )


def has_rejected(plan: Plan, step: Step) -> bool:
    """Whether anybody learns from a dataset's rejected answers; else it is for fine-tuning."""
    return any(train.objective != "sft_chosen" for train in _trainings(plan, step))


def _trainings(plan: Plan, step: Step) -> list[Step]:
    # A retrained twin learns from the dataset of round 0 in a later one, and is no part of this.
    own = (s for s in plan.steps if s.kind == "train" and s.dataset_round is None)
    return [s for s in own if plan.dataset(s) == step]


def _completions(published: pl.DataFrame) -> pl.DataFrame:
    sides = {c: f"completion{c[6:]}" for c in published.columns if c.startswith("chosen")}
    return published.rename(sides)


def _conversations(
    pairs: pl.DataFrame, inner: pl.Series, out: set[tuple[str, str | None]]
) -> pl.DataFrame:
    """Whole conversations, each once, without those in which an inner turn may not be learned."""
    whole = pairs.select(messages=pl.col("prompt").list.concat(pl.concat_list(_answer("chosen"))))
    fit = [not _holds(prompt, out) for prompt in pairs["prompt"].to_list()]
    goes_on = _key(pl.col("messages")).is_in(inner.implode())
    return whole.filter(~goes_on & pl.Series(fit, dtype=pl.Boolean))


def _left_out(dropped: pl.DataFrame) -> set[tuple[str, str | None]]:
    """Turns that may not be learned: with this answer, or where there is none, with any."""
    kept_once = pl.col("reason") == "duplicate_answer"
    return set(dropped.filter(~kept_once).select("prompt_id", "response").iter_rows())


def _holds(prompt: list[Message], out: set[tuple[str, str | None]]) -> bool:
    """Whether an answer inside a conversation is one of those."""
    turns = [(prompt_id(prompt[:n]), m["content"]) for n, m in enumerate(prompt) if _is_answer(m)]
    return any((turn, said) in out or (turn, None) in out for turn, said in turns)


def _is_answer(message: Message) -> bool:
    return message["role"] == "assistant"


def _gone_on_from(path: Path) -> pl.Series:
    """The conversations on which another row's prompt goes on, as hashes: 8 bytes a row."""
    before = pl.col("prompt").list.head(pl.col("prompt").list.len() - 1)
    longer = pl.scan_parquet(path).filter(pl.col("prompt").list.len() > 1)
    return longer.select(_key(before)).unique().collect().to_series()


def _key(messages: pl.Expr) -> pl.Expr:
    turn = pl.element().struct
    each = messages.list.eval(pl.concat_str(turn.field("role"), pl.lit(" "), turn.field("content")))
    return each.list.join("\x1e").hash()


def _full(pairs: pl.DataFrame) -> pl.DataFrame:
    sides = {s: pl.col("prompt").list.concat(pl.concat_list(_answer(s))) for s in _SIDES}
    return pairs.with_columns(**sides)


def _sharegpt(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.with_columns(**{side: _answer(side) for side in _SIDES})


_SIDES = ("chosen", "rejected")


def _answer(side: str) -> pl.Expr:
    return pl.struct(role=pl.lit("assistant"), content=pl.col(side))


def _voice(plan: Plan, store: Store, policy: Policy) -> dict[str, Any]:
    """An agent as it spoke: base, adapter, template."""
    agent = plan.recipe.agents[policy.agent]
    maker = plan.maker(policy)
    made = store.manifest(plan.name(maker)) if maker else None
    return {
        "policy": str(policy),
        "role": agent.role,
        "fingerprint": plan.policy_fingerprint(policy),
        "base": agent.base if maker or not agent.endpoint else agent.endpoint.model,
        "base_revision": Lock(store.root).pins()["models"].get(f"{agent.base}@{agent.revision}"),
        "adapter": maker and plan.name(maker),
        "adapter_sha256": made and made["adapter_sha256"],
        "chat_template": agent.chat_template,
        "template_sha256": made and made.get("template_sha256"),
    }


def _writers(plan: Plan, store: Store) -> pl.DataFrame:
    """Every policy of the plan by its fingerprint, for the provenance columns."""
    policies = [policy for step in plan.steps if (policy := step.makes)]
    policies += [Policy(agent) for agent in plan.recipe.agents]
    kept = {
        "fingerprint": "policy",
        "base": "model",
        "base_revision": "model_revision",
        "adapter_sha256": "adapter_sha256",
    }
    voices = [_voice(plan, store, policy) for policy in dict.fromkeys(policies)]
    rows = pl.DataFrame(voices, schema=dict.fromkeys(kept, pl.String))
    return rows.rename(kept).unique("policy", keep="last", maintain_order=True)


def _starts(plan: Plan, store: Store, step: Step, repo: str | None) -> list[dict[str, Any]]:
    """Where each training on this dataset starts, and against what: what a stranger has to fetch.

    A start on the bare base needs no adapter. The place of an adapter follows from its name, so
    that it is the same whether its adapters were pushed already or not.
    """
    base = plan.recipe.agents[step.learner].base
    found = []
    for train in _trainings(plan, step):
        voices = [_voice(plan, store, policy) for policy in train.policies]
        held_to = None if plan.recipe.dpo.reference == "base" else voices[-1]["adapter"]
        found += [
            {
                "trains": str(train.makes),
                "objective": train.objective,
                "needs": needs,
                "start": voice["adapter"] or base,
                "reference": (held_to or base) if train.objective == "dpo" else None,
                "base": base,
                "base_revision": voice["base_revision"],
                "adapter_sha256": voice["adapter_sha256"],
                "repo": adapters_repo(repo) if voice["adapter"] and repo else None,
                "revision": Path(voice["adapter"]).name if voice["adapter"] else None,
            }
            # The second one is needed as the reference alone.
            for needs, voice in zip(("start", "reference"), voices, strict=False)
        ]
    return found


def _pins(recipe: Recipe, store: Store) -> dict[str, dict[str, str | None]]:
    """The part of lock.json that this recipe reads."""
    pins = Lock(store.root).pins()
    models = {f"{agent.base}@{agent.revision}" for agent in recipe.agents.values()}
    return {
        "models": {k: v for k, v in pins["models"].items() if k in models},
        "data": dict(pins["data"]),
    }


def _write_recipe(recipe: Recipe, to: Path) -> None:
    """The recipe as it was used, with the templates that it keeps in files of their own."""
    values = recipe.model_dump(mode="json")
    for section, key in text_files(values):
        text = read_template(section[key]) if key == "chat_template" else prompts.read(section[key])
        kind = "template-{}.jinja" if key == "chat_template" else "prompt-{}.txt"
        name = kind.format(hashlib.sha256(text.encode()).hexdigest()[:12])
        (to / name).write_text(text, "utf-8")
        section[key] = name
    (to / "recipe.yaml").write_text(
        yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8"
    )


# How both arrow and `datasets` call what is neither a message nor a list of them.
_KINDS = {pl.String: "string", pl.Int64: "int64", pl.Float64: "float64", pl.Boolean: "bool"}


def _arrow_schema(table: Table) -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])

    def convert(dtype: pl.DataType) -> Any:
        if isinstance(dtype, pl.List):
            return pa.list_(message)
        return message if isinstance(dtype, pl.Struct) else pa.type_for_alias(_KINDS[type(dtype)])

    return pa.schema([(name, convert(dtype)) for name, dtype in table.items()])


def _feature(name: str, dtype: pl.DataType) -> dict[str, Any]:
    """A column as the card's dataset_info declares it, in the form that `datasets` reads."""
    message = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
    if isinstance(dtype, pl.List):
        return {"name": name, "list": message}
    if isinstance(dtype, pl.Struct):
        return {"name": name, "struct": message}
    return {"name": name, "dtype": _KINDS[type(dtype)]}


def _json(value: Any, sort_keys: bool = True) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False)
    return (text + "\n").encode()
