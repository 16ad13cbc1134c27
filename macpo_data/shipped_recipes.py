"""Paths of the recipes and studies that are installed with macpo."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable


def recipes_folder() -> Traversable:
    """The folder `recipes/`: inside the installed package `macpo`, or beside it in a checkout.

    It is never looked up as a module called `recipes`, which may be somebody else's.
    """
    package = resources.files("macpo")
    installed = package / "recipes"
    return installed if installed.is_dir() else package / ".." / "recipes"
