"""What a training on one dataset needs, without recipe and run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from macpo_data.errors import MacpoError
from macpo_data.models import base as bases
from macpo_data.models.fits import check_adapter
from macpo_data.models.weights import ADAPTER_FILES
from macpo_data.planning import hardware
from macpo_data.planning.outlook import saved_bytes, training_fit
from macpo_data.planning.shapes import cached_file, shape_of
from macpo_data.recipe.agents import Agent, takes_text_as_it_is
from macpo_data.recipe.recipe import TrainSettings
from macpo_data.recipe.training import DPO, SFT
from macpo_data.sources.files import is_local
from macpo_data.sources.ingest.door import open_rows
from macpo_data.sources.ingest.splits import Dataset
from macpo_data.sources.usable import other_kind
from macpo_run.adapter_places import AdapterPlace
from macpo_run.preflight import data, models, room, running
from macpo_run.preflight.finding import Checks, Health

NO_PINS: dict[str, dict[str, str]] = {"models": {}, "data": {}}


def needs(
    settings: TrainSettings,
    dataset: Dataset,
    agent: Agent,
    out: Path,
    adapters: Mapping[str, str | None],
) -> Checks:
    """What a training needs, each thing once by its name.

    Args:
        settings: of it.
        dataset: that it learns from.
        agent: whose base is trained.
        out: folder of the new adapter.
        adapters: that it starts from, and is held to, by the option that names them.
    """
    checks: Checks = {f"output {out.parent}": partial(data.writable, out.parent, "--out")}
    if is_local(dataset.place):
        checks[f"data {dataset}"] = partial(_data, dataset, settings)
    for option, name in adapters.items():
        if name is not None:
            checks[f"adapter {option}"] = partial(_adapter, settings, agent, option, name)
    if settings.engine.name == "fake":
        return checks
    checks["base"] = partial(models.base, agent, NO_PINS, "--base")
    checks["template"] = partial(models.template, agent)
    batch = section_of(settings).batch_size
    checks["training"] = partial(running.training, settings.train, [batch])
    checks["memory"] = partial(_memory, settings, agent)
    checks["disk"] = partial(_disk, settings, agent, out)
    return checks


def section_of(settings: TrainSettings) -> DPO | SFT:
    """The section that says what is minimised."""
    return settings.dpo if settings.objective == "dpo" else settings.sft


def _data(dataset: Dataset, settings: TrainSettings) -> Iterator[Health]:
    """Local data can be opened, and are of the kind that is wanted; of rows only a few are read."""
    try:
        as_it_is = takes_text_as_it_is(settings.chat_template)
        rows = open_rows(dataset, settings.columns, rendered=as_it_is)
    except MacpoError as error:
        yield Health("problem", "data", str(error))
        return
    if reason := other_kind(rows.layout, settings.objective):
        yield Health("problem", "data", f"{dataset.place} {reason}")


def _adapter(settings: TrainSettings, agent: Agent, option: str, name: str) -> Iterator[Health]:
    """Whether an adapter is there, and was made for this base."""
    try:
        place = AdapterPlace.of(name)
        folder = place.fetch() if place.folder else _in_cache(place)
    except MacpoError as error:
        yield Health("problem", "adapter", str(error), f"mend {option}")
        return
    if folder is None:
        yield models.on_hub(place.repo, place.revision or "main", "adapter", place.flaw)
        return
    if settings.engine.name == "fake":
        return
    try:
        far = models.is_far(agent.base)
        revision = agent.revision if far else bases.resolve(agent)
    except MacpoError:
        return  # said where the base is looked at
    try:
        check_adapter(folder, bases.Base(agent.base, revision), settings.another_base)
    except MacpoError as error:
        yield Health("problem", "adapter", str(error))


def _in_cache(place: AdapterPlace) -> Path | None:
    """The folder of an adapter that was fetched before."""
    names = [place.prefix + name for name in ADAPTER_FILES]
    files = [cached_file(place.repo, name, place.revision or "main") for name in names]
    return files[0].parent if files[0] and all(files) else None


def _memory(settings: TrainSettings, agent: Agent) -> Iterator[Health]:
    try:
        shape = shape_of(agent)
    except MacpoError:
        return  # said where the base is looked at
    on = hardware.here()

    def short(settings: TrainSettings) -> list[Health]:
        section = section_of(settings)
        how = settings.train.finetuning
        fit = training_fit("train", settings, section, agent, shape, room.TOKENS, on, how)
        return list(room.short_of_memory([fit], on))

    # How long the rows are is not known yet: what short ones do not need stops nobody.
    shortest = settings.train.model_copy(update={"max_length": 1, "micro_batch_size": 1})
    if lines := short(settings.model_copy(update={"train": shortest})):
        yield from lines
        return
    for line in short(settings):
        detail = f"{line.detail}, with rows of train.max_length={settings.train.max_length} tokens"
        yield replace(line, status="warning", detail=detail)


def _disk(settings: TrainSettings, agent: Agent, out: Path) -> Iterator[Health]:
    how, written = settings.train.finetuning, 0.0
    with suppress(MacpoError):
        shape = shape_of(agent)
        written = saved_bytes(shape, settings.lora, settings.train, how)
        written += room.to_resume(shape, settings.train, how)
    yield from room.short_of_disk(out.parent, written, [agent], "--out")
