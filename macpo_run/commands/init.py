"""`macpo init`: writes a recipe to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

from macpo_data.errors import MacpoError
from macpo_run.terminal.lines import say, say_next


def init(recipe: str, to: Path, full: bool) -> None:
    """Copy a shipped recipe, to be edited, and beside it a schema for editors.

    Args:
        recipe: its name.
        to: where to write it.
        full: every key, with what it means.

    Raises:
        MacpoError: there is no such recipe, or the file exists already.
    """
    from macpo_data.loading.write import copy_recipe

    if to.exists():
        raise MacpoError(f"{to} exists already; move it away, or choose another name with --to")
    schema = copy_recipe(recipe, to, full)
    say(f"wrote {to}, and {schema} for editors")
    named = f" --recipe {shlex.quote(str(to) if to.parent.name else f'./{to}')}"
    say_next("macpo status" + ("" if to == Path("macpo.yaml") else named))
