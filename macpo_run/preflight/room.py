"""Whether memory and disk suffice, by the plan's estimates."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from macpo_data.errors import MacpoError
from macpo_data.generation.cost import Ask
from macpo_data.plan import Plan, Step
from macpo_data.planning import hardware, memory
from macpo_data.planning.fits import Fit
from macpo_data.planning.outlook import is_here, saved_bytes, speech_fit, train_fit
from macpo_data.planning.shapes import Shape, shape_of
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.training import Finetuning, Train
from macpo_run.preflight.data import existing
from macpo_run.preflight.finding import Health
from macpo_run.preflight.voices import Voices

GIB = 1 << 30
OFF = 1.25  # how much an estimate of memory may be off before it stops a command
TOKENS = 200  # of a prompt, where memory is estimated


def memory_for(plan: Plan, voices: Voices) -> Iterator[Health]:
    """What of a run does not fit into this machine's memory."""
    on = hardware.here()
    yield from short_of_memory(_fits(plan, voices, on), on)


def short_of_memory(fits: Iterable[Fit], on: hardware.Hardware) -> Iterator[Health]:
    """What does not fit into a machine's memory, by estimates that may be off by a quarter."""
    for fit in fits:
        free = on.free if not on.is_gpu else on.memory
        if fit.way.peak <= free - memory.PROCESS:
            continue
        status: Literal["warning", "problem"] = "problem"
        if fit.way.peak <= OFF * (free - memory.PROCESS):
            status = "warning"
        ways = [way for way in fit.others if way.peak <= free - memory.PROCESS]
        settings = " or ".join(way.settings for way in ways)
        mend = f"set {settings}" if settings else f"name a smaller base than {fit.base}"
        line = (
            f"{fit.what}: about {(fit.way.peak + memory.PROCESS) / GIB:,.1f} GiB of "
            f"{free / GIB:,.1f} free"
        )
        yield Health(status, "memory", line, mend)


def _fits(plan: Plan, voices: Voices, on: hardware.Hardware) -> Iterator[Fit]:
    """All models that work here, each on prompts of a usual length."""
    recipe = plan.recipe
    for name, step in voices.trained.items():
        agent = plan.reward_agent if name == "reward" else recipe.agents[name]
        try:
            shape = shape_of(agent)
        except MacpoError:
            continue  # said where the base is looked at
        yield train_fit(recipe, step, agent, shape, TOKENS, on)
    new = float(recipe.sampling.max_new_tokens)
    for kind, agents in (("write", voices.written), ("score", voices.scored)):
        for name, agent in agents.items():
            try:
                shape = shape_of(agent)
            except MacpoError:
                continue
            ask = Ask(kind, "", name, 1, 1, TOKENS, new / 2, new)  # type: ignore[arg-type]
            yield speech_fit(recipe, ask, shape, on)


def disk_for(
    plan: Plan, root: Path, steps: Sequence[Step], agents: Sequence[Agent]
) -> Iterator[Health]:
    """Whether the policies that some steps make, and downloads, find room."""
    written = resumed = 0.0
    recipe = plan.recipe
    for step in steps:
        if step.kind == "train" and step.objective != "reward":
            try:
                shape = shape_of(recipe.agents[step.learner])
            except MacpoError:
                continue
            how = recipe.finetuning(step.learner)
            written += saved_bytes(shape, recipe.lora, recipe.train, how)
            resumed = max(resumed, to_resume(shape, recipe.train, how))
    yield from short_of_disk(root, written + resumed, agents, "--runs")


def to_resume(shape: Shape, train: Train, finetuning: Finetuning) -> float:
    """Bytes from which a training of all weights goes on: weights and moments, the last two."""
    if finetuning == "lora":
        return 0.0
    moments = memory.ADAM_8BIT if train.optimizer == "adamw_8bit" else memory.ADAM
    return float(2 * shape.parameters * (4 + moments))


def short_of_disk(
    root: Path, written: float, agents: Sequence[Agent], option: str
) -> Iterator[Health]:
    """Whether what is written below a folder, and downloads, find room.

    Args:
        root: the folder.
        written: bytes.
        agents: whose bases are downloaded where they are not here.
        option: with which a person names another folder.
    """
    from huggingface_hub import constants

    download = {a.base: _to_download(a) for a in agents}
    fetched = sum(download.values())
    places = {existing(root): written}
    cache = existing(Path(constants.HF_HUB_CACHE))
    same = cache.stat().st_dev == existing(root).stat().st_dev
    places[existing(root) if same else cache] = written + fetched if same else fetched
    bases = ", ".join(base for base, size in download.items() if size)
    for place, wanted in places.items():
        free = shutil.disk_usage(place).free
        if wanted > free:
            fetches = f" (to download: {bases})" if bases and (same or place == cache) else ""
            yield Health(
                "problem",
                "disk",
                f"{free / 1e9:,.1f} GB free at {place}, {wanted / 1e9:,.1f} GB needed{fetches}",
                f"free some, or choose another disk with {option} or HF_HOME",
            )


def _to_download(agent: Agent) -> float:
    """Bytes to download for a base: none where it is here, or of unknown size."""
    try:
        if is_here(agent):
            return 0.0
        shape = shape_of(agent)
    except MacpoError:
        return 0.0
    return float(shape.parameters * shape.bytes_saved)
