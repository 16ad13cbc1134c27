"""`macpo clean`: removes results that no recipe of a run uses any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from macpo_data.errors import MacpoError
from macpo_run.commands.run_options import RunOptions, open_run, spelt
from macpo_run.terminal.lines import say, say_aside, say_next

if TYPE_CHECKING:
    from macpo_data.store.store import Store
    from macpo_run.rounds import Run


def clean(recipes: Sequence[str], runs: Path, sets: list[str] | None, *, remove: bool) -> None:
    """List, or remove, results of a run that none of some recipes reaches.

    Args:
        recipes: as a person names them; none for the default one.
        runs: the folder of all runs.
        sets: `a.b=c`, laid over each recipe.
        remove: delete them.

    Raises:
        MacpoError: the recipes have different runs.
    """
    from macpo_run.cleaning import unreachable

    opened = [open_run(RunOptions(name, runs, sets)) for name in recipes or (None,)]
    names = unreachable(opened + _swept(opened))
    for name in names:
        _clean(opened[0].store, name, remove)
    if not names:
        say("every result is reached by the recipe")
    elif not remove:
        say_next("macpo clean --yes" + spelt([*recipes], runs, sets))


def _swept(opened: Sequence[Run]) -> list[Run]:
    """The runs of the sweeps that were made in the folder of all these runs."""
    from macpo_run.sweep.sweep import recorded

    if len({run.store.root for run in opened}) > 1:
        raise MacpoError("these recipes have different runs; clean one run at a time")
    swept = []
    for path, variants in recorded(opened[0]):
        say_aside(f"kept: what the sweep in {path} reaches; without that file it is listed")
        swept += variants
    return swept


def _clean(store: Store, name: str, remove: bool) -> None:
    """List a result, or remove it."""
    from macpo_run import cleaning

    path = store.path(name)
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    say(f"{'removed' if remove else 'unreached'}  {size / 1e6:8.1f} MB  {path}")
    if remove:
        cleaning.remove(store, name)
