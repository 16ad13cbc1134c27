"""The rank of this process in a distributed training; 0 when it runs alone."""

from __future__ import annotations

import os


def is_first() -> bool:
    """Every process trains, and the first one keeps the books."""
    return os.environ.get("RANK", "0") == "0"


def is_launched() -> bool:
    """Whether somebody started this process as one of a training's, were it the only one."""
    return "WORLD_SIZE" in os.environ


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))
