"""A run from Python: opened once, then read, continued and measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl

from macpo_data.errors import MacpoError
from macpo_run.api.asking import Settings, as_sets, progress_of, require, speaker

if TYPE_CHECKING:
    import datasets

    from macpo_run.rounds import Run

Table = Literal["pairs", "candidates", "dropped", "turns", "judgements"]
STEPS = {
    "kind": pl.String(), "round": pl.Int64(), "learner": pl.String(), "behavior": pl.String(),
    "state": pl.String(), "path": pl.String(),
}  # fmt: skip


def open_run(
    recipe: str | Path | None = None,
    *,
    runs: str | Path = "runs",
    settings: Settings | None = None,
    quiet: bool = False,
) -> Run:
    """Open a run; nothing of it is made or loaded yet.

    It closes its processes at the end of a `with` block, or by `close()`.

    Args:
        recipe: a shipped recipe's name, or a YAML file; None for ./macpo.yaml where there is one,
            else quickstart.
        runs: the folder of all runs.
        settings: what is laid over the recipe, by dotted key.
        quiet: no progress and no remarks on stderr.

    Raises:
        MacpoError: there is no such recipe, or it has mistakes; all of them at once.

    >>> import macpo
    >>> run = macpo.open_run("quickstart", settings={"engine.name": "fake", "data.limit": 8})
    >>> run.recipe.method, run.recipe.data.limit
    ('macpo', 8)
    """
    from macpo_data.loading.load import load_recipe
    from macpo_run.commands.run_options import spelt
    from macpo_run.rounds import Run

    name, sets, say = None if recipe is None else str(recipe), as_sets(settings), speaker(quiet)
    options = spelt([name] if name else [], Path(runs), sets)
    label = Path(name).stem if name else None
    values = load_recipe(name, sets, say=say)
    return Run(values, Path(runs), progress_of(quiet), say, label=label, options=options)


def steps(run: Run) -> pl.DataFrame:
    """Every step of a run with its state and where its result is or will be.

    Returns:
        A row for each: kind (gen, train), round, learner, behavior, state (done, ready, waiting,
        stale), path.

    >>> import macpo
    >>> run = macpo.open_run("quickstart", settings={"engine.name": "fake", "data.limit": 8})
    >>> macpo.steps(run).filter(kind="train", round=1)["learner"].to_list()
    ['student', 'teacher_1', 'teacher_2', 'teacher_3']
    """
    states = run.states()
    rows = [
        (step.kind, step.round, step.learner, step.behavior, state, str(run.path(step)))
        for step, state in states.items()
    ]
    return pl.DataFrame(rows, schema=STEPS, orient="row")


def make(
    run: Run,
    round: int,
    kind: Literal["gen", "train"] | None = None,
    learner: str | None = None,
    *,
    redo: bool = False,
) -> list[Path]:
    """Make steps of a round: all of it, or of one kind and learner. What is finished is kept.

    Args:
        run: whose steps they are.
        round: which round.
        kind: gen writes datasets, train trains on them; None finishes the round in turns.
        learner: only this agent; read where a kind is named.
        redo: make anew what is damaged or made from what changed; read where a kind is named.

    Returns:
        The folders of the results, new and kept.

    Raises:
        MacpoError: something is missing or waits for another step; what is finished stays.

    >>> import macpo
    >>> run = macpo.open_run(
    ...     "quickstart", settings={"engine.name": "fake", "data.limit": 8}, quiet=True
    ... )
    >>> folders = macpo.make(run, 0)
    >>> all((folder / "manifest.json").is_file() for folder in folders)
    True
    """
    from macpo_run.commands.before import needs_of

    if kind is None and (learner is not None or redo):
        raise MacpoError("make: learner and redo belong to a kind; say kind='gen' or kind='train'")
    todo = run.select(kind, round, learner)
    require(needs_of(run, todo, redo))
    with run.store.in_use():
        outcome = run.make(kind, round, learner, redo) if kind else run.finish_round(round)
    if outcome.waiting:
        waiting = (f"{step} waits for {', '.join(why)}" for step, why in outcome.waiting.items())
        raise MacpoError("; ".join(waiting))
    return [path for _, path in [*outcome.wrote, *outcome.kept]]


def read_round(
    run: Run, round: int, learner: str | None = None, *, table: Table = "pairs"
) -> pl.DataFrame:
    """A dataset of a round, after a check that its file is as it was written.

    Args:
        run: of which.
        round: which round.
        learner: who learns from it; None for the student, or whoever has one.
        table: pairs to train on; candidates with their scores and ranks; dropped answers with the
            reason; with method moaa also turns and judgements.

    Returns:
        The columns that `macpo_data.schema` describes, PAIRS for pairs. Perplexities are those of
        the learner before it was trained.

    Raises:
        MacpoError: there is no such dataset yet, or it is damaged.

    >>> import macpo
    >>> run = macpo.open_run(
    ...     "quickstart", settings={"engine.name": "fake", "data.limit": 8}, quiet=True
    ... )
    >>> _ = [macpo.make(run, n) for n in (0, 1)]
    >>> pairs = macpo.read_round(run, 1)
    >>> pairs.columns[:4]
    ['prompt_id', 'prompt', 'chosen', 'rejected']
    >>> 0 < len(pairs) <= 8
    True
    """
    step = run.dataset_step(round, learner)
    folder = run.path(step)
    if not (folder / f"{table}.parquet").is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.parquet")))
        raise MacpoError(f"{folder} has no {table}; its tables are {there}")
    return run.store.read(run.plan.name(step), f"{table}.parquet")


def as_dataset(frame: pl.DataFrame) -> datasets.Dataset:
    """A frame as a dataset of the library `datasets`, such as TRL takes.

    >>> import macpo, polars as pl
    >>> macpo.as_dataset(pl.DataFrame({"prompt": ["Hi"], "chosen": ["Hello."]})).column_names
    ['prompt', 'chosen']
    """
    import datasets

    return datasets.Dataset.from_polars(frame)


def evaluate(
    run: Run,
    round: int | str = "all",
    agents: Sequence[str] = (),
    *,
    against: str | None = None,
) -> pl.DataFrame:
    """Measure policies on the held-out prompts, as the recipe's `eval` says.

    Args:
        run: whose policies.
        round: a number, "all" that are trained, or "base" for the bare bases.
        agents: only these.
        against: compare with this policy, such as student-positive-0, or with the human's chosen
            answers.

    Returns:
        EVALUATION: a row for each policy and measure, `mean` with its 95 % interval `low`, `high`.

    Raises:
        MacpoError: there is no such policy yet, or nobody to judge.

    >>> import macpo
    >>> run = macpo.open_run(
    ...     "quickstart", settings={"engine.name": "fake", "data.limit": 8}, quiet=True
    ... )
    >>> _ = macpo.make(run, 0)
    >>> scores = macpo.evaluate(run, 0, ["student"])
    >>> scores["measure"].unique().to_list(), scores["prompts"].max()
    (['gold'], 8)
    """
    from macpo_data.evaluation.policies import choose

    policies = choose(run.plan, run.store, str(round), agents)
    with run.store.in_use():
        return run.evaluate(policies, against).table
