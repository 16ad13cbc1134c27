"""Trains on any preference dataset, without a recipe or a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from macpo_data import hub_client
from macpo_data.errors import DataError, MacpoError, ModelError
from macpo_data.loading.load import load_settings
from macpo_data.models import base as models
from macpo_data.models.worker import Progress, Workers
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.recipe import TrainSettings
from macpo_data.schema import SCORES
from macpo_data.sources.pairs import preference_rows
from macpo_data.sources.tables import default_config, read_table
from macpo_data.store.manifests import MANIFEST
from macpo_data.store.store import sha256, write_json, write_parquet
from macpo_data.versions import versions
from macpo_run.policies import job_of
from macpo_run.training import fit, pretrain
from macpo_train.adapter import ADAPTER_FILES
from macpo_train.ranks import is_first

# Several pairs of one prompt are no mistake here: each is a row to learn from.
KEPT = "duplicate_prompt"
INITIAL = ("dpo.reference=initial",)
SCORED = ("sum_logprob", "num_tokens", "eot_logprob")


def train_on(
    dataset: str,
    base: str,
    out: Path,
    *,
    config: str | None,
    revision: str | None,
    init: str | None,
    reference: str | None = None,
    sets: list[str] | None,
    progress: Progress,
    say: Callable[[str], None],
) -> Path:
    """Train an adapter on a dataset, whoever made it, and return its folder.

    Killed, and said again with the same settings, it goes on from its last checkpoint.

    Args:
        dataset: on the Hub, a folder, or a file.
        base: model on the Hub or a folder.
        out: where the adapter goes; a manifest beside it says how it came to be.
        config: of the dataset.
        revision: of the dataset.
        init: adapter to go on from: a folder, or org/name[/subfolder][@revision] on the Hub.
        reference: adapter to hold it to, named likewise: that of dpo.reference=initial.
        sets: settings as `a.b=c`.
        progress: shows how far it is.
        say: prints a line.

    Raises:
        MacpoError: anything that a person can mend.
    """
    settings, out = load_settings([*(INITIAL if reference else []), *(sets or [])]), out.resolve()
    _check(settings, out, init, reference)
    raw = read_table(dataset, config, revision)
    pairs, counts = usable_pairs(raw, settings, dataset)
    for reason, count in counts.items():
        say(f"left out {count} rows: {reason}")
    agent = Agent(
        role="student",
        base=base,
        chat_template=settings.chat_template,
        trust_remote_code=settings.trust_remote_code,
    )
    pinned = _pinned(agent, settings, progress)
    start, held_to = _adapter(init), _adapter(reference)
    scored_under = scores_depend_on(dataset, config) or {}
    held_to_name = _reference_name(settings, base, init, reference)
    if held_to_name:
        say(f"starting from {init or base}; the reference is {held_to_name}")

    with workplace(out, is_first()) as work:
        table, adapter = work / "pairs.parquet", work / "adapter"
        write_parquet(table, pairs)
        adapter.mkdir(exist_ok=True)
        job = job_of(
            settings,
            settings.dpo if settings.objective == "dpo" else settings.sft,
            agent,
            pinned,
            table,
            adapter,
            column="chosen",
            start=start,
            confidence=settings.confidence,
            seed=settings.seed,
            scored_under=scored_under if scored_under.get("base") == base else None,
            reference=held_to,
            cache=work / "reference",
            logs=out.parent / "logs",
            name=out.name,
        )
        with closing(Workers(1)) as workers:
            facts = fit(job, f"training {out.name} on {len(pairs)} pairs", progress, workers)
        if not is_first():
            return out
        manifest = {
            "kind": "train",
            "dataset": dataset,
            "config": config,
            "revision": revision,
            "pairs_sha256": sha256(table),
            "left_out": counts,
            "base": base,
            "base_revision": pinned.revision,
            "start": init,
            "start_sha256": start and models.adapter_sha256(start),
            "reference": held_to_name,
            "reference_sha256": held_to and models.adapter_sha256(held_to),
            # An adapter that is gone on with has its own shape.
            "settings": settings.model_dump(mode="json", exclude={"lora"} if init else None),
            "adapter_sha256": models.adapter_sha256(adapter),
            **versions(),
            **facts,
        }
        write_json(adapter / MANIFEST, manifest)
        if out.exists():
            out.rmdir()
        shutil.move(adapter, out)
        shutil.rmtree(work)
    return out


def _check(settings: TrainSettings, out: Path, init: str | None, reference: str | None) -> None:
    """Refuse options that exclude each other, and a folder that holds something.

    Raises:
        MacpoError: with what to leave out or to add.
    """
    if settings.objective == "sft" and reference:
        raise MacpoError("--reference: fine-tuning has none; leave one of the two out")
    if reference and settings.dpo.reference != "initial":
        raise MacpoError(
            f"--reference {reference} and dpo.reference={settings.dpo.reference} exclude each "
            "other; leave one of the two out"
        )
    if settings.dpo.reference == "initial" and not reference:
        raise MacpoError(
            "dpo.reference=initial: name the adapter of round 0 with --reference ADAPTER, or set "
            "dpo.reference=previous"
        )
    if init and "lora" in settings.model_fields_set:
        raise MacpoError("lora.*: the adapter of --init keeps its shape; leave out one of them")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MacpoError(f"{out} exists already; choose another folder with --out")


def _pinned(agent: Agent, settings: TrainSettings, progress: Progress) -> models.Base:
    """The base at its revision of now; one of the embedded world is made if it is not there."""
    if settings.engine.name == "fake":
        return models.Base(agent.base, None, agent.trust_remote_code)
    base = models.Base(agent.base, models.resolve(agent), agent.trust_remote_code)
    pretrain([agent.base], progress)
    return base


def _reference_name(
    settings: TrainSettings, base: str, init: str | None, reference: str | None
) -> str | None:
    """What the policy is held to, for a person to read; None where it is held to nothing."""
    if settings.objective == "sft":
        return None
    if init and settings.dpo.reference == "previous":
        return reference or "the starting adapter"
    return reference or base


@contextmanager
def workplace(out: Path, first: bool) -> Iterator[Path]:
    """The folder beside `out` in which a training that was killed goes on.

    What it keeps of other settings is not taken: checkpoints and log-probabilities know theirs.
    A start that fails before there are any leaves nothing behind.

    Raises:
        MacpoError: another process is at work there.
    """
    work = out.with_name(f".{out.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        if first:
            lock.acquire(timeout=0)
    except Timeout:
        raise MacpoError(f"another process trains into {out}; choose another --out") from None
    try:
        yield work
    except BaseException:
        kept = [*work.glob("adapter/trainer/checkpoint-*"), *work.glob("reference/*")]
        if first and not kept:
            shutil.rmtree(work)
        raise
    finally:
        lock.release()


def scores_depend_on(dataset: str, config: str | None) -> dict[str, Any] | None:
    """What a dataset's scores depend on, where macpo made them and its manifest is here.

    It stands beside the file of a run's or a pulled dataset, and inside a published folder.
    """
    place = Path(dataset).expanduser()
    manifests = [place.parent / MANIFEST]
    if place.is_dir():
        name = config or default_config(place / "README.md")
        manifests = list(place.glob(f"macpo/{name}/data/*/{MANIFEST}"))
    try:
        (manifest,) = manifests
        under: dict[str, Any] | None
        (under,) = json.loads(manifest.read_text("utf-8"))["scored_under"].values()
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return under


def usable_pairs(
    raw: pl.DataFrame, settings: TrainSettings, place: str
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows to train on, and how many were left out by reason.

    Raises:
        DataError: a column is missing, or no row can be used.
    """
    rows = preference_rows(raw, settings.columns, place)
    # What a dataset of macpo says of its answers: one that was cut does not teach to stop, and
    # scores may spare the reference pass.
    optional = {"finish_reason": pl.String, **{name: SCORES[name] for name in SCORED}}
    sides = {"chosen": settings.columns.chosen, "rejected": settings.columns.rejected}
    rows = rows.with_columns(
        raw[f"{column}_{name}"].alias(f"{side}_{name}")
        for side, column in sides.items()
        for name, t in optional.items()
        if raw.schema.get(f"{column}_{name}") == t
    )
    good = pl.col("reason").is_null() | (pl.col("reason") == KEPT)
    wanted = ["chosen", *(["rejected"] if settings.objective == "dpo" else [])]
    good &= pl.all_horizontal(pl.col(name).is_not_null() for name in wanted)
    left = rows.filter(~good)["reason"].fill_null("no_answer").value_counts().sort("reason")
    counts = dict(left.iter_rows())
    pairs = rows.filter(good).drop("reason")
    if pairs.is_empty():
        raise DataError(f"{place}: no usable pair among {len(raw)} rows ({counts}); `macpo check`")
    return pairs, counts


def _adapter(init: str | None) -> Path | None:
    """The folder of an adapter, fetched from the Hub where it is not here."""
    if init is None:
        return None
    folder = Path(init).expanduser()
    if folder.is_dir() or init.startswith((".", "/", "~")):
        if not all((folder / name).is_file() for name in ADAPTER_FILES):
            raise ModelError(
                f"no adapter in {init}: a folder with {' and '.join(ADAPTER_FILES)} is needed"
            )
        return folder
    place, _, revision = init.partition("@")
    parts = place.split("/")
    repo = hub_client.check_repo("/".join(parts[:2]))
    prefix = "".join(f"{part}/" for part in parts[2:])
    with hub_client.one_line("fetch the adapter", init):
        from huggingface_hub import snapshot_download

        hub_client.connect()
        where = hub_client.ask(
            snapshot_download,
            repo,
            revision=revision or None,
            allow_patterns=[f"{prefix}{name}" for name in ADAPTER_FILES],
        )
    folder = Path(where) / prefix
    if not (folder / ADAPTER_FILES[1]).is_file():
        raise ModelError(f"{init} holds no adapter in safetensors; name it as org/name/subfolder")
    return folder
