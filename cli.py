"""The `macpo` command. Parses, calls one function, prints; `main` makes an error one line."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from macpo_data.errors import MacpoError

if TYPE_CHECKING:
    from macpo_data.plan import Step
    from macpo_data.store import State
    from rounds import Outcome, Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Make preference data round by round, and train on it.

Weak teachers and a strong student teach each other (MACPO). Each round is a dataset.

Start with `macpo run --until 2` for a small world on this machine, or with `macpo init hh_helpful`
for a recipe of your own. What is finished is kept: the same command goes on where it stopped.
""",
)

RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="A shipped recipe's name, or a YAML file. Default: "
                 "./macpo.yaml if there is one, else quickstart."),
]  # fmt: skip
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a.b=c over the recipe; repeatable."),
]
RoundOption = Annotated[int, typer.Option("--round", help="0 initialises; 1.. contrast.")]
LearnerOption = Annotated[str | None, typer.Option("--learner", help="Only this agent.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")]
RedoOption = Annotated[
    bool,
    typer.Option(
        "--redo",
        help="Make the steps anew; old results are moved aside.",
    ),
]
RUNS = Path("runs")
# A disk that is full or out of quota, or a path that cannot be what it has to be.
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _say(f"macpo {version('macpo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Carry the options that stand before a command."""


@app.command()
def init(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe.")] = "quickstart",
    to: Annotated[Path, typer.Option(help="Where to write it.")] = Path("macpo.yaml"),
) -> None:
    """Copy a shipped recipe to ./macpo.yaml, to be edited."""
    from macpo_data.recipe import recipe_text

    _, text = recipe_text(recipe)
    if to.exists():
        raise MacpoError(f"{to} exists already; move it away, or choose another name with --to")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, "utf-8")
    _say(f"wrote {to}")
    named = f" --recipe {shlex.quote(str(to) if to.parent.name else f'./{to}')}"
    _next("macpo status" + ("" if to == Path("macpo.yaml") else named))


@app.command()
def gen(
    round_: RoundOption,
    learner: LearnerOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    dry_run: DryOption = False,
    redo: RedoOption = False,
) -> None:
    """Write every dataset of a round whose inputs exist."""
    with _open(recipe, runs, sets) as run:
        if dry_run:
            return _print_plan(run, run.select("gen", round_, learner))
        _finish(run, run.make("gen", round_, learner, redo))


@app.command()
def train(
    round_: RoundOption,
    learner: LearnerOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    dry_run: DryOption = False,
    redo: RedoOption = False,
) -> None:
    """Train every learner of a round whose dataset exists."""
    with _open(recipe, runs, sets) as run:
        if dry_run:
            return _print_plan(run, run.select("train", round_, learner))
        _finish(run, run.make("train", round_, learner, redo))


@app.command("run")
def run_(
    round_: Annotated[int | None, typer.Option("--round", help="Finish this round.")] = None,
    until: Annotated[int | None, typer.Option(help="Finish all rounds up to this one.")] = None,
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    dry_run: DryOption = False,
) -> None:
    """Finish a round, or all rounds up to one: gen, train, gen, train."""
    if round_ is not None and until is not None:
        raise typer.BadParameter("--round and --until exclude each other")
    with _open(recipe, runs, sets) as run:
        last = run.recipe.rounds if until is None else until
        wanted = [round_] if round_ is not None else list(range(last + 1))
        steps = [step for each in wanted or [last] for step in run.select(None, each)]
        if dry_run:
            return _print_plan(run, steps)
        for each in wanted:
            outcome = run.finish_round(each)
            if outcome.waiting or each == wanted[-1]:
                break
            _print_outcome(outcome)
        if not outcome.waiting:
            _print_results(run, each)
        _finish(run, outcome, whole=True)


@app.command()
def status(
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of steps, for programs.")] = False,
) -> None:
    """Say what is done, ready, waiting or stale. Needs neither network nor model."""
    with _open(recipe, runs, sets) as run:
        if not as_json:
            _print_plan(run, run.plan.steps)
            return _say_next(run)
        found = run.states()
        rows = [
            {
                "kind": step.kind,
                "round": step.round,
                "learner": step.learner,
                "behavior": step.behavior,
                "state": found[step],
                "fingerprint": run.plan.fingerprint(step),
                "path": str(run.path(step)),
                "waiting_for": run.waits_for(step, found),
            }
            for step in run.plan.steps
        ]
        _say(json.dumps(rows, indent=1))


@app.command()
def show(
    round_: RoundOption,
    learner: LearnerOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pairs to print.")] = 3,
) -> None:
    """Read the pairs of a round."""
    with _open(recipe, runs, sets) as run:
        steps = run.select("gen", round_, learner)
        done = [step for step in steps if run.states()[step] in ("done", "stale")]
        if not done:
            raise MacpoError(f"round {round_} has no dataset yet; run `macpo gen --round {round_}`")
        step = next((s for s in done if s.learner in run.recipe.students), done[0])
        from macpo_data.show import print_pairs

        name = run.plan.name(step)
        print_pairs(run.store.read(name, "pairs.parquet"), run.store.manifest(name), count)
        _say(f"{run.path(step) / 'pairs.parquet'}")


@app.command()
def clean(
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", "-r", help="Keep what this recipe reaches; repeatable."),
    ] = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
) -> None:
    """List, and with --yes remove, results of the run that no named recipe reaches.

    A folder that several recipes share needs all of them named.
    """
    from rounds import remove, unreachable

    opened = [_open(name, runs, sets) for name in recipe or (None,)]
    if len({run.store.root for run in opened}) > 1:
        raise MacpoError("these recipes have different runs; clean one run at a time")
    names = unreachable(opened)
    store = opened[0].store
    for name in names:
        size = sum(p.stat().st_size for p in store.path(name).rglob("*") if p.is_file())
        _say(f"{'removed' if yes else 'unreached'}  {size / 1e6:8.1f} MB  {store.path(name)}")
        if yes:
            remove(store, name)
    if not names:
        _say("every result is reached by the recipe")
    elif not yes:
        options = [word for name in recipe or [] for word in ("--recipe", name)]
        _next("macpo clean --yes" + _options_said(options, runs, sets))


def _open(recipe: str | None, runs: Path, sets: list[str] | None) -> Run:
    from macpo_data.recipe import load_recipe
    from macpo_data.show import progress
    from rounds import Run

    run = Run(load_recipe(recipe, sets), runs, progress, lambda line: print(line, file=sys.stderr))
    run.said = _options_said(["--recipe", recipe] if recipe else [], runs, sets)
    return run


def _options_said(recipe: list[str], runs: Path, sets: list[str] | None) -> str:
    """The options as they were given, so that a command to come can be copied whole."""
    words = [*recipe, *([] if runs == RUNS else ["--runs", str(runs)])]
    words += [word for setting in sets or [] for word in ("--set", setting)]
    return " " + shlex.join(words) if words else ""


def _finish(run: Run, outcome: Outcome, whole: bool = False) -> None:
    """Say what was written and what comes next; exit 1 where all of it (`whole`: any) waits."""
    _print_outcome(outcome)
    _say_next(run)
    if outcome.waiting and (whole or not (outcome.wrote or outcome.kept)):
        raise typer.Exit(1)


def _print_outcome(outcome: Outcome) -> None:
    for step, path in outcome.wrote:
        _say(f"wrote    {step}: {path}")
    for step, path in outcome.kept:
        _say(f"kept     {step}: {path}")
    for step, reasons in outcome.waiting.items():
        _say(f"waiting  {step}: {', '.join(reasons)}")


def _print_plan(run: Run, steps: list[Step]) -> None:
    from macpo_data.show import print_steps

    found = run.states()
    print_steps(
        [(step, found[step], run.plan.name(step), run.waits_for(step, found)) for step in steps],
        f"{run.store.root}: {run.recipe.method}, rounds 0..{run.recipe.rounds}",
    )


def _print_results(run: Run, last: int) -> None:
    """The gold table, where the source has a gold judge, and three pairs of the last round."""
    from macpo_data.evaluate import gold_table
    from macpo_data.show import print_gold, print_pairs

    if run.recipe.data.source == "world":
        print_gold(*gold_table(run.context(), last))
    steps = [s for s in run.select("gen", last) if s.learner in run.recipe.students]
    for step in steps:
        name = run.plan.name(step)
        if run.store.is_done(name):
            print_pairs(run.store.read(name, "pairs.parquet"), run.store.manifest(name), 3)


def _say_next(run: Run) -> None:
    """Name the command that goes on from here."""
    found: dict[Step, State] = run.states()
    for step in run.plan.steps:
        if found[step] == "ready":
            return _next(f"macpo {step.kind} --round {step.round}{run.said}")
        if found[step] == "stale":
            which = f"--round {step.round} --learner {step.learner} --redo"
            return _next(f"macpo {step.kind} {which}{run.said}")
    _next(f"macpo show --round {run.recipe.rounds}{run.said}")


def _say(line: str) -> None:
    print(line)


def _next(command: str) -> None:
    _say(f"next: {command}")


def main() -> None:
    """Run the command; a person's mistake is one line on stderr and exit code 1."""
    from macpo_data.errors import plain

    # Raised as any other error, before typer would end silently.
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except Interrupted as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(130)
    except MacpoError as error:
        sys.exit(f"error: {plain(' '.join(str(error).split()))}")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f" ({plain(str(error.filename))})" if error.filename else ""
        sys.exit(
            f"error: {os.strerror(error.errno)}{where}; mend that and run the same command again: "
            "what is finished stays"
        )


class Interrupted(MacpoError):
    """Somebody pressed Ctrl-C."""


def _interrupt(*_: object) -> None:
    raise Interrupted("interrupted; run the same command again to go on: what is finished stays")


if __name__ == "__main__":
    main()
