"""Trains on any preference dataset, without a recipe or a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout
from pydantic import BaseModel

from macpo_data.errors import DataError, MacpoError
from macpo_data.loading.load import load_settings
from macpo_data.models import base as models
from macpo_data.models.weights import weights_sha256
from macpo_data.models.worker import Progress, Workers
from macpo_data.outside import parse_json, read_bytes
from macpo_data.recipe import secrets
from macpo_data.recipe.agents import Agent, takes_text_as_it_is
from macpo_data.recipe.recipe import TrainSettings
from macpo_data.schema import SCORES, WHOLE
from macpo_data.sources.ingest.canonical import TRAINABLE
from macpo_data.sources.ingest.door import Rows, frame, open_rows
from macpo_data.sources.ingest.splits import Dataset, default_config
from macpo_data.sources.usable import other_kind, why_none
from macpo_data.store.manifests import MANIFEST
from macpo_data.store.store import sha256, write_json, write_parquet
from macpo_data.versions import versions
from macpo_run.adapter_places import AdapterPlace
from macpo_run.policies import job_of
from macpo_run.preflight.finding import Checks
from macpo_run.preflight.standalone import needs, section_of
from macpo_run.training import fit, make_bases
from macpo_train.ranks import is_first

INITIAL = ("dpo.reference=initial",)
SCORED = ("sum_logprob", "num_tokens", "eot_logprob")


def train_on(
    dataset: Dataset,
    base: str,
    out: Path,
    *,
    init: str | None,
    reference: str | None = None,
    sets: list[str] | None,
    progress: Progress,
    say: Callable[[str], None],
    look: Callable[[Checks], None],
) -> Path:
    """Train an adapter on a dataset, whoever made it, and return its folder.

    Killed, and said again with the same settings, it goes on from its last checkpoint.

    Args:
        dataset: which.
        base: model on the Hub or a folder.
        out: where the adapter goes; a manifest beside it says how it came to be.
        init: adapter to go on from: a folder, or org/name[/subfolder][@revision] on the Hub.
        reference: adapter to hold it to, named likewise: that of dpo.reference=initial.
        sets: settings as `a.b=c`.
        progress: shows how far it is.
        say: prints a line.
        look: stops where something that is needed is missing.

    Raises:
        MacpoError: anything that a person can mend.
    """
    settings, out = load_settings([*(INITIAL if reference else []), *(sets or [])]), out.resolve()
    adapters = {"--init": init, "--reference": reference}
    _check_secrets(dataset, {"--base": base, **adapters, "--out": str(out)})
    _check(settings, out, init, reference)
    agent = Agent(
        role="student",
        base=base,
        chat_template=settings.chat_template,
        trust_remote_code=settings.trust_remote_code,
    )
    look(needs(settings, dataset, agent, out, adapters))
    rows = open_rows(dataset, settings.columns, takes=TRAINABLE,
                     rendered=takes_text_as_it_is(settings.chat_template))  # fmt: skip
    pairs = usable_pairs(rows, settings)
    for line in rows.account.lines():
        say(line)
    pinned = pin(agent, settings, progress)
    start, held_to = _adapter(init), _adapter(reference)
    scored_under = scores_depend_on(dataset.place, dataset.config) or {}
    held_to_name = _reference_name(settings, base, init, reference)
    if held_to_name:
        say(f"starting from {init or base}; the reference is {held_to_name}")

    with workplace(out, is_first()) as work:
        table, adapter = work / "pairs.parquet", work / "adapter"
        write_parquet(table, pairs)
        adapter.mkdir(exist_ok=True)
        job = job_of(
            settings,
            section_of(settings),
            agent,
            pinned,
            table,
            adapter,
            column="chosen",
            start=start,
            finetuning=settings.train.finetuning,
            another_base=settings.another_base,
            confidence=settings.confidence,
            seed=settings.seed,
            scored_under=scored_under if scored_under.get("base") == base else None,
            reference=held_to,
            cache=work / "reference",
            logs=out.parent / "logs",
            name=out.name,
        )
        with Workers(1) as workers:
            facts = fit(job, f"training {out.name} on {len(pairs)} pairs", progress, workers)
        if not is_first():
            return out
        manifest = {
            "kind": "train",
            "dataset": dataset.place,
            "config": dataset.config,
            "revision": dataset.revision,
            "split": dataset.split,
            "pairs_sha256": sha256(table),
            **rows.account.facts(),
            "base": base,
            "base_revision": pinned.revision,
            "start": init,
            "start_sha256": start and weights_sha256(start),
            "reference": held_to_name,
            "reference_sha256": held_to and weights_sha256(held_to),
            # An adapter that is gone on with has its own shape.
            "settings": settings.model_dump(mode="json", exclude={"lora"} if init else None),
            "adapter_sha256": weights_sha256(adapter),
            **versions(),
            **facts,
        }
        write_json(adapter / MANIFEST, manifest)
        if out.exists():
            out.rmdir()
        shutil.move(adapter, out)
        shutil.rmtree(work)
    return out


def _check_secrets(dataset: Dataset, places: dict[str, str | None]) -> None:
    """Refuse a key that stands where a name belongs: a manifest, which is published, repeats it.

    Raises:
        MacpoError: with the options.
    """
    here = Path(dataset.place).expanduser()  # the name of a file that is here may look drawn
    names = {"--dataset": str(here.absolute()) if here.exists() else dataset.place, **places}
    names |= {f"--{key}": getattr(dataset, key) for key in ("config", "revision", "split")}
    if problems := secrets.problems(names):
        raise MacpoError("; ".join(problems))


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
    if settings.train.finetuning == "full" and (init or reference):
        option = "--init" if init else "--reference"
        raise MacpoError(
            f"{option}: it names an adapter, and train.finetuning=full trains a whole model; name "
            "a checkpoint with --base, or fold the adapter into its base (`push --merge`)"
        )
    if init and "lora" in settings.model_fields_set:
        raise MacpoError("lora.*: the adapter of --init keeps its shape; leave out one of them")
    check_free(out)


def check_free(out: Path) -> None:
    """Refuse a folder of a new adapter that holds something.

    Raises:
        MacpoError: it does, or is no folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MacpoError(f"{out} exists already; choose another folder with --out")


def pin(agent: Agent, settings: TrainSettings, progress: Progress) -> models.Base:
    """The base at its revision of now; one of the embedded world is made if it is not there."""
    if settings.engine.name == "fake":
        return models.Base(agent.base, None, agent.trust_remote_code)
    base = models.Base(agent.base, models.resolve(agent), agent.trust_remote_code)
    make_bases([agent.base], progress)
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


class ScoredUnder(BaseModel):
    """What a dataset's manifest says that its scores depend on, by policy."""

    scored_under: dict[str, dict[str, Any] | None]


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
        facts = ScoredUnder.model_validate(parse_json(read_bytes(manifest)))
        (under,) = facts.scored_under.values()
    except (OSError, ValueError):  # pydantic's own error is a ValueError
        return None
    return under


def usable_pairs(rows: Rows, settings: TrainSettings) -> pl.DataFrame:
    """The rows to train on. Several pairs of one prompt are no mistake: each is one to learn from.

    Raises:
        DataError: the data are of another kind than the objective wants, or no row can be used.
    """
    layout, place = rows.layout, rows.source.name
    wanted = ["chosen", *(["rejected"] if settings.objective == "dpo" else [])]
    if reason := other_kind(layout, settings.objective):
        raise DataError(f"{place} {reason}")
    # What a dataset of macpo says of its answers: one that was cut does not teach to stop, and
    # scores may spare the reference pass.
    optional = {"finish_reason": pl.String(), **{name: SCORES[name] for name in SCORED}}
    sides = {"chosen": layout.chosen, "rejected": layout.rejected}
    scored = {
        f"{column}_{name}": (f"{side}_{name}", dtype)
        for side, column in sides.items()
        for name, dtype in optional.items()
        if column and f"{column}_{name}" in layout.kinds
    }
    rows.also_read = frozenset(scored)
    table = frame((rows.without(each, wanted) for each in rows), *scored)
    table = table.with_columns(
        pl.col(column).cast(dtype, strict=False).alias(name)
        for column, (name, dtype) in scored.items()
    )
    pairs = table.filter(pl.col("reason").is_null())
    if reason := why_none(rows):
        raise DataError(f"{place}: {reason}")
    names = ["prompt", "chosen", "rejected", WHOLE, "prompt_id", *(n for n, _ in scored.values())]
    return pairs.select(names)


def _adapter(name: str | None) -> Path | None:
    """The folder of an adapter, fetched from the Hub where it is not here."""
    return None if name is None else AdapterPlace.of(name).fetch()
