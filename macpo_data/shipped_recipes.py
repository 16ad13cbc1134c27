"""Paths of the recipes and studies that are installed with macpo."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable


def recipes_folder() -> Traversable:
    """The folder `recipes/`: inside the installed package `macpo`, or beside it in a checkout.

    It is never looked up as a module called `recipes`, which may be somebody else's.
    """
    package = resources.files("macpo")
    installed = package / "recipes"
    return installed if installed.is_dir() else package / ".." / "recipes"


def names_in(folder: Traversable) -> list[str]:
    """Names of the recipes, or studies, of a folder."""
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if _is_yaml(f))


def about(folder: Traversable) -> dict[str, str]:
    """By name, the first sentence of what each recipe or study of a folder says of itself."""
    return {
        name: _first_sentence((folder / f"{name}.yaml").read_text("utf-8"))
        for name in names_in(folder)
    }


def _is_yaml(file: Traversable) -> bool:
    return file.name.endswith(".yaml")


def _first_sentence(text: str) -> str:
    r"""Of the comment at the top, without the line for editors.

    >>> _first_sentence("# Ten rounds: do they\n# hold? Yes.\nrun: long")
    'Ten rounds: do they hold?'
    """
    lines = [line for line in text.splitlines() if not line.startswith("# yaml-language-server")]
    end = next((n for n, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    words = " ".join(line.removeprefix("# ") for line in lines[:end])
    return re.split(r"(?<=[.?])\s", words, maxsplit=1)[0]
