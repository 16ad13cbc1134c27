"""Whether bases and reward models can be loaded: weights, tokenizer, template, gated or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from macpo_data import hub_client
from macpo_data.bases import gguf
from macpo_data.bases.named import (
    WEAKENED,
    check_base,
    folder_of,
    gguf_file,
    is_local_base,
    is_made,
    is_ready,
    weakened,
)
from macpo_data.errors import MacpoError
from macpo_data.models.base import unreachable
from macpo_data.outside import parse_json, read_bytes
from macpo_data.planning.outlook import is_here
from macpo_data.planning.shapes import cached_file, shape_of
from macpo_data.recipe.agents import Agent, is_named, read_template
from macpo_data.recipe.section import written
from macpo_data.world.named import WORLD
from macpo_run.preflight.finding import Health

WAIT = 10  # seconds for the Hub's answer
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")


def is_far(base: str) -> bool:
    """Whether a base is on the Hub."""
    return not is_local_base(base)


def base(agent: Agent, pins: Mapping[str, Any], key: str, classifies: bool = False) -> list[Health]:
    """Whether a base can be loaded: its files, its tokenizer, its template; gated or not."""
    what = "reward model" if classifies else "base"
    if is_local_base(agent.base):
        try:
            flaws = list(_flaws_here(agent, classifies))
        except MacpoError as error:
            flaws = [str(error)]
        if flaws:
            return [Health("problem", what, "; ".join(flaws), f"mend {key}")]
        return [Health("ok", what, agent.base)]
    pin = pins["models"].get(f"{written(agent.base)}@{agent.revision}")
    if pin and is_here(agent.model_copy(update={"revision": pin})):
        config = cached_file(agent.base, "config.json", pin)
        flaws = list(_flaws_of_folder(agent, config.parent, classifies)) if config else []
        if config and not flaws:
            return [Health("ok", what, agent.base)]
    return [on_hub(agent.base, agent.revision, what, partial(_flaw_there, agent))]


def _flaws_here(agent: Agent, classifies: bool) -> Iterator[str]:
    """What a base on this machine lacks, made yet or not.

    Raises:
        MacpoError: it cannot be one.
    """
    check_base(agent.base)
    if agent.base.startswith(WORLD):
        return  # it is pretrained where it is missing
    folder = folder_of(agent.base)
    if agent.base.startswith(WEAKENED):
        shape_of(agent)
        inner = agent.model_copy(update={"base": weakened(agent.base).base})
        yield from _flaws_here(inner, classifies)
    elif folder is None or (is_made(agent.base) and not is_ready(folder)):
        if file := gguf_file(agent.base):
            yield from gguf.flaws(file, agent.chat_template == "tokenizer")
    else:
        yield from _flaws_of_folder(agent, folder, classifies)


def template(agent: Agent) -> Iterator[Health]:
    """Whether a chat template that is named by its file is there."""
    if not is_named(agent.chat_template):
        try:
            read_template(agent.chat_template)
        except MacpoError as error:
            yield Health("problem", "chat template", str(error))


def _flaws_of_folder(agent: Agent, folder: Path, classifies: bool) -> Iterator[str]:
    """What a folder lacks to be loaded."""
    if not (folder / "config.json").is_file():
        yield f"no model in {agent.base}: a folder with a config.json is needed"
        return
    try:
        config = parse_json(read_bytes(folder / "config.json"))
        shape_of(agent)
    except (OSError, ValueError) as error:
        yield f"{agent.base}: cannot read its config.json ({type(error).__name__})"
        return
    except MacpoError as error:
        # The sizes of an encoder, or of a kind that the plan does not know, have other names.
        if not classifies and not (isinstance(config, dict) and config.get("model_type")):
            yield str(error)
            return
    if not any(folder.glob("*.safetensors")):
        yield f"{agent.base} has no weights as *.safetensors"
    if not any((folder / name).is_file() for name in (*TOKENIZERS, "tokenizer_config.json")):
        yield f"{agent.base} has no tokenizer"
    elif agent.chat_template == "tokenizer" and not _has_template(folder):
        yield f"{agent.base} brings no chat template: name one with chat_template, such as vicuna"
    kinds = [str(kind) for kind in config.get("architectures") or []]
    if classifies and kinds and all(kind.endswith("ForCausalLM") for kind in kinds):
        yield f"{agent.base} is no reward model but a {kinds[0]}"


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        values = parse_json(read_bytes(folder / "tokenizer_config.json"))
        return bool(values.get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _flaw_there(agent: Agent, info: Any) -> str | None:
    """What a repository lacks to be loaded, as far as its page tells."""
    names = {file.rfilename for file in info.siblings or []}
    if "config.json" not in names:
        return None  # it says too little
    if not any(name.endswith(".safetensors") for name in names):
        return "it has no weights as *.safetensors"
    tokenizer = (info.config or {}).get("tokenizer_config")
    is_bare = tokenizer is not None and not tokenizer.get("chat_template")
    if agent.chat_template == "tokenizer" and is_bare and "chat_template.jinja" not in names:
        return "it brings no chat template: name one with chat_template, such as vicuna"
    return None


def on_hub(name: str, revision: str, what: str, flaw: Callable[[Any], str | None]) -> Health:
    """Whether files of a repository may be read: what is gated shows its name to everybody."""
    from huggingface_hub import constants

    kind: Literal["dataset", "model"] = "dataset" if what == "dataset" else "model"
    if constants.HF_HUB_OFFLINE:
        hint = "HF_HUB_OFFLINE is set: unset it, or name a local folder"
        return Health("problem", what, f"{what} {name}: {hint} (OfflineModeIsEnabled)")
    try:
        hub = hub_client.connect()
        info = hub.repo_info(name, repo_type=kind, revision=revision, timeout=WAIT)
        hub.auth_check(name, repo_type=kind)
    except Exception as error:  # every way of not reaching the Hub has its own class
        line, _, hint = unreachable(what, name, error).partition(": ")
        return Health("problem", what, line, hint)
    if problem := flaw(info):
        return Health(
            "problem", what, f"{name}: {problem}", "name another one, or another revision"
        )
    return Health("ok", what, name)
