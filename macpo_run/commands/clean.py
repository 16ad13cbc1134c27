"""`macpo clean`: removes results that no recipe of a run uses any more, and what kills left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from macpo_data.errors import MacpoError
from macpo_run.commands.run_options import RunOptions, open_run, spelt
from macpo_run.terminal.lines import say, say_aside, say_next

if TYPE_CHECKING:
    from macpo_data.store.store import Store
    from macpo_run.rounds import Run


def clean(
    recipes: Sequence[str],
    runs: Path,
    sets: list[str] | None,
    *,
    remove: bool,
    checkpoints: bool = False,
) -> None:
    """List, or remove, results of a run that none of some recipes reaches.

    Args:
        recipes: as a person names them; none for the default one.
        runs: the folder of all runs.
        sets: `a.b=c`, laid over each recipe.
        remove: delete them.
        checkpoints: also the weights of checkpoints of earlier rounds.

    Raises:
        MacpoError: the recipes have different runs.
    """
    from macpo_data.store.locks import is_at_work

    opened = [open_run(RunOptions(name, runs, sets)) for name in recipes or (None,)]
    store = opened[0].store
    if len({run.store.root for run in opened}) > 1:
        raise MacpoError("these recipes have different runs; clean one run at a time")
    if not remove and is_at_work(store.root):
        say_aside(f"another macpo process is at work in {store.root}: what it makes may be listed")
    # What may go is decided when nobody makes anything that would need it.
    with store.alone() if remove else nullcontext():
        count = _clean(opened, _without_sets(recipes, runs, sets, store), remove)
        count += _thin(opened, remove) if checkpoints else 0
    if not count:
        say("every result is reached by the recipe")
    elif not remove:
        also = " --checkpoints" if checkpoints else ""
        say_next(f"macpo clean{also} --yes" + spelt([*recipes], runs, sets))


def _clean(opened: Sequence[Run], plain: Sequence[Run], remove: bool) -> int:
    """List or remove what no recipe reaches, and what kills left; how much that is.

    Args:
        opened: the runs of the recipes as they were named.
        plain: those of the same recipes without `--set`.
        remove: delete it.
    """
    from macpo_run import cleaning

    store, kept = opened[0].store, [*opened, *_swept(opened)]
    others = {
        "without --set": plain,
        "with eval.ceiling=true": [run for each in opened for run in cleaning.with_ceiling(each)],
    }
    reached = {how: cleaning.reached(runs) for how, runs in others.items() if runs}
    names = cleaning.unreachable(kept)
    for name in names:
        hows = [how for how, some in reached.items() if name in some]
        path = store.path(name)
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if remove:
            cleaning.remove(store, name)
        note = f"  (the recipe reaches it {' and '.join(hows)})" if hows else ""
        say(f"{'removed' if remove else 'unreached'}  {size / 1e6:8.1f} MB  {path}{note}")
    left = [path for path in cleaning.left_by_kills(store) if path.exists()]
    for path in left:
        if remove:
            path.unlink(missing_ok=True)
        say(f"{'removed' if remove else 'left by a kill'}  {path}")
    return len(names) + len(left)


def _thin(opened: Sequence[Run], remove: bool) -> int:
    """List or remove the weights of old checkpoints, whose manifests stay; how many those are."""
    from macpo_run import cleaning

    store = opened[0].store
    names = cleaning.old_checkpoints([*opened, *_swept(opened)])
    for name in names:
        size = sum(path.stat().st_size for path in store.path(name).glob("*.safetensors"))
        if remove:
            with store.lock(name):
                store.thin(name)
        what = "removed" if remove else "earlier round"
        say(f"{what}  {size / 1e6:8.1f} MB  weights of {store.path(name)}")
    return len(names)


def _without_sets(
    recipes: Sequence[str], runs: Path, sets: list[str] | None, store: Store
) -> list[Run]:
    """The runs of the same recipes without `--set`, where they lie in the same folder."""
    plain: list[Run] = []
    for name in (recipes or (None,)) if sets else ():
        with suppress(MacpoError):  # a recipe may be whole only with what is laid over it
            plain.append(open_run(RunOptions(name, runs)))
    return [run for run in plain if run.store.root == store.root]


def _swept(opened: Sequence[Run]) -> list[Run]:
    """The runs of the sweeps that were made in the folder of all these runs."""
    from macpo_run.sweep.sweep import recorded

    swept = []
    for path, variants in recorded(opened[0]):
        say_aside(f"kept: what the sweep in {path} reaches; without that file it is listed")
        swept += variants
    return swept
