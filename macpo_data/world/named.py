"""Base models of the embedded world by their names in recipes: world:strong, world:weak-a/1."""

from __future__ import annotations

from macpo_data.errors import ModelError
from macpo_data.world.bases import BASES, base_spec

WORLD = "world:"


def check_world_base(base: str) -> None:
    """Refuse a world base that does not exist.

    Raises:
        ModelError: there is no such base.
    """
    if not base.startswith(WORLD):
        return
    try:
        base_spec(base.removeprefix(WORLD))
    except KeyError:
        names = ", ".join(WORLD + n for n in BASES)
        raise ModelError(
            f"no base {base}; the embedded world has {names}, and of each others with another seed "
            f"of pretraining, such as {WORLD}weak-a/1"
        ) from None
