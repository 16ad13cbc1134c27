"""Whether engines, trainings and servers can start: packages, settings, keys."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from macpo_data.engines.choose import NoEngine, pick
from macpo_data.generation import answers
from macpo_data.models.base import gpus
from macpo_data.planning.fits import launched
from macpo_data.recipe.agents import Endpoint
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.training import Train
from macpo_run.preflight.finding import Health

WAIT = 10  # seconds for a server's answer
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")  # with which all is trained


def engine(recipe: Recipe, scores: bool) -> Iterator[Health]:
    """The engines that the recipe uses on this machine."""
    try:
        writer = pick(recipe.engine)
        scorer = pick(recipe.engine, recipe.score.engine) if scores else writer
    except NoEngine as error:
        name = "ray" if recipe.engine.name == "ray" else "vllm"
        packages = {"vllm": "vllm", "ray": "vllm 'ray[data]'"}[name]
        mend = f"pip install {packages}" if gpus() else f"make {name}"
        yield Health("problem", "engine", error.problem, mend)
        return
    yield Health("ok", "engine", f"{writer.name} writes, {scorer.name} scores")


def math_verify() -> Iterator[Health]:
    """What compares numbers, which only those need whose right answers are some."""
    if answers.is_missing():
        line = "eval.by=answer compares numbers and formulas by math-verify, which is not installed"
        yield Health("warning", "eval", line, answers.INSTALL)


def training(settings: Train, batches: Collection[int]) -> Iterator[Health]:
    """What a training needs besides its base."""
    for package in PACKAGES:
        if find_spec(package) is None:
            line = f"{package} is not installed"
            yield Health("problem", "training", line, f"pip install {package}, or macpo anew")
    if settings.quantization == "nf4" and not gpus():
        yield Health("problem", "training", "train.quantization=nf4 needs a GPU", "set it to none")
    elif settings.quantization == "nf4" and find_spec("bitsandbytes") is None:
        line = "train.quantization=nf4 needs bitsandbytes"
        yield Health("problem", "training", line, "pip install bitsandbytes")
    if settings.optimizer == "adamw_8bit" and not (gpus() and find_spec("bitsandbytes")):
        line = "train.optimizer=adamw_8bit needs a GPU and bitsandbytes"
        yield Health("problem", "training", line, "set it to adamw, or pip install bitsandbytes")
    if settings.report_to != "none" and find_spec(settings.report_to) is None:
        line = f"train.report_to={settings.report_to} needs its package"
        yield Health("problem", "training", line, f"pip install {settings.report_to}")
    if settings.launcher and not Path(settings.launcher).is_file():
        line = f"cannot read train.launcher {settings.launcher}"
        mend = "`accelerate config --config_file FILE` writes one"
        yield Health("problem", "training", line, mend)
    processes, _ = launched(settings)
    for batch in sorted(batches):
        micro = min(settings.micro_batch_size or batch, batch // processes)
        if micro < 1 or batch % (micro * processes):
            line = (
                f"batch_size {batch} is no multiple of train.micro_batch_size {micro} times "
                f"{processes} processes"
            )
            yield Health("problem", "training", line, "set train.micro_batch_size to a divisor")


def key(name: str) -> Health:
    """Whether a key is in the environment; never what it is."""
    if os.environ.get(name, "").strip():
        return Health("ok", "key", f"{name} is set")
    return Health("problem", "key", f"{name} is not set", f"export {name}=...")


def server(endpoint: Endpoint) -> Iterator[Health]:
    """Whether an endpoint's key is set, and it answers."""
    name, headers = endpoint.api_key_env, {}
    if name:
        yield (health := key(name))
        if health.status == "problem":
            return
        headers = {"Authorization": f"Bearer {os.environ[name].strip()}"}
    url = endpoint.base_url.rstrip("/") + "/models"
    try:
        urlopen(Request(url, headers=headers), timeout=WAIT).close()
    except HTTPError as error:
        if error.code in (401, 403):
            line = f"{endpoint.base_url} refuses the key ({error.code})"
            yield Health("problem", "server", line, f"check {name or 'api_key_env'}")
            return
        # Another answer is one: not every server lists its models, and some are busy for a while.
    except (URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        line = f"{endpoint.base_url} does not answer ({type(why).__name__})"
        yield Health("problem", "server", line, "start it, or check base_url")
        return
    yield Health("ok", "server", endpoint.base_url)
