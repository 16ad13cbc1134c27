"""`macpo init`: a recipe of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path

from macpo_data.errors import MacpoError
from macpo_run.terminal.lines import say, say_next


def init(recipe: str, to: Path) -> None:
    """Copy a shipped recipe, to be edited.

    Raises:
        MacpoError: there is no such recipe, or the file exists already.
    """
    from macpo_data.recipe.load import recipe_text

    _, text = recipe_text(recipe)
    if to.exists():
        raise MacpoError(f"{to} exists already; move it away, or choose another name with --to")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, "utf-8")
    say(f"wrote {to}")
    named = f" --recipe {shlex.quote(str(to) if to.parent.name else f'./{to}')}"
    say_next("macpo status" + ("" if to == Path("macpo.yaml") else named))
