"""Paths that a recipe's file names: they start at its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from macpo_data import prompts
from macpo_data.bases.named import PACKAGED, WEAKENED
from macpo_data.recipe.agents import is_named
from macpo_data.recipe.evaluation import TRAINED
from macpo_data.recipe.section import OpenedPath
from macpo_data.world.named import WORLD

_REWARDS = ("eval.reward", "judge.reward", "eval.judge.reward")
_PARTS = ("d1", "d2", "test")
# Keys whose value is a file, a folder, an id on the Hub, or a list of these.
PLACES = (
    "data.path",
    *(f"data.{part}.{key}" for part in _PARTS for key in ("path", "more.path")),
    "select.test_sets", "agents.*.base", "reward.base",
    *(path for reward in _REWARDS for path in (reward, f"{reward}.model")),
)  # fmt: skip
# Keys whose value is a file, or a name of the package's own.
FILES = (
    "agents.*.chat_template", "reward.chat_template",
    *(f"{reward}.chat_template" for reward in _REWARDS),
    "judge.prompts.*", "eval.judge.prompts.*", "mixture.prompt", "framing.positive",
    "framing.negative", "train.launcher",
)  # fmt: skip
_DATA = re.compile(r"\.(jsonl?|ndjson|csv|tsv|parquet|arrow|gguf)(\.gz|\.zst)?$")


def start_beside(values: dict[str, Any], folder: Path) -> list[str]:
    """Let the relative paths of a recipe's raw values start at its folder, in place.

    What is not there, but in the working directory, is taken from here, as it once was.

    Args:
        values: as the file has them.
        folder: in which the file lies.

    Returns:
        A line for each path that was found in the working directory alone.
    """
    lines: list[str] = []
    is_here = folder.resolve() == Path.cwd()

    def opened(value: str, is_file: bool) -> str:
        if value.startswith(WEAKENED):  # its base may be a path
            base, mark, rest = value.removeprefix(WEAKENED).rpartition("?")
            inner = opened(base, is_file) if _is_path(base) else base
            return OpenedPath(f"{WEAKENED}{inner}{mark}{rest}", value)
        beside = folder / value
        if _exists(beside):
            return value if is_here else OpenedPath(str(beside), value)
        if _exists(Path(value)):
            lines.append(
                f"{value} was found in the working directory, not beside the recipe; paths of a "
                f"recipe start at its folder: write {Path(value).absolute()}, or move it to "
                f"{folder.absolute()}"
            )
            return value
        named = is_file or value.startswith(".") or _DATA.search(value)
        return OpenedPath(str(beside), value) if named and not is_here else value

    for paths, is_file in ((PLACES, False), (FILES, True)):
        for path in paths:
            for section, key in _at(values, path.split(".")):
                value = section[key]
                if isinstance(value, list):
                    section[key] = [opened(v, is_file) if _is_path(v) else v for v in value]
                elif _is_path(value):
                    section[key] = opened(value, is_file)
    return list(dict.fromkeys(lines))


def _at(values: Any, keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """(section, key) of what stands at some keys, of which * is any."""
    key, *rest = keys
    if not isinstance(values, dict):
        return
    for name in list(values) if key == "*" else [key] if key in values else []:
        if rest:
            yield from _at(values[name], rest)
        else:
            yield values, name


def _is_path(value: Any) -> bool:
    """Whether a value may be a relative path, and no name that means something of its own."""
    if not isinstance(value, str) or value in (TRAINED, "") or is_named(value):
        return False
    return not value.startswith(("~", "/", WORLD, PACKAGED)) and not prompts.is_own(value)


def _exists(path: Path) -> bool:
    try:
        return path.exists() or Path(str(path).replace("#", "/")).is_file()  # folder#file.gguf
    except (OSError, ValueError):  # a name that can be none
        return False
