"""The `macpo` command. Parses, calls one function, prints; `main` makes an error one line."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from macpo_data.errors import Interrupted, MacpoError, plain

if TYPE_CHECKING:
    from macpo_data.plan import Step
    from macpo_data.recipe import Recipe
    from macpo_data.report.collect import Source
    from macpo_data.store.store import State
    from macpo_run.rounds import Outcome, Run

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
ALONE = "Without recipe and run"
OTHERS = "For other evaluators, and people"
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", help="Of the dataset, such as round_2_student.", rich_help_panel=ALONE
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option(help="Tag or commit of the dataset.", rich_help_panel=ALONE)
]
CountOption = Annotated[int, typer.Option("--count", "-n", min=1, help="Pairs to print.")]
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
    from macpo_data.loading import recipe_text

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
    with _open_to_make(recipe, runs, sets) as run:
        if dry_run:
            steps = run.select("gen", round_, learner)
            _print_plan(run, steps)
            return _print_costs(run, steps)
        _finish(run, run.make("gen", round_, learner, redo))


@app.command()
def train(
    round_: Annotated[int | None, typer.Option("--round", help="0 initialises; 1.. contrast.")] = (
        None
    ),
    learner: LearnerOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    dry_run: DryOption = False,
    redo: RedoOption = False,
    reward: Annotated[
        bool,
        typer.Option("--reward", help="Train a reward model on D1's human pairs, for `eval`."),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Train on this instead: a dataset on the Hub, a folder or a file.",
            rich_help_panel=ALONE,
        ),
    ] = None,
    config: ConfigOption = None,
    revision: RevisionOption = None,
    base: Annotated[
        str | None, typer.Option(help="Model: Hub id or folder.", rich_help_panel=ALONE)
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Adapter to go on from.", rich_help_panel=ALONE)
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Adapter to hold it to, such as round 0's.", rich_help_panel=ALONE),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new adapter.", rich_help_panel=ALONE)
    ] = None,
) -> None:
    """Train every learner of a round whose dataset exists, or on any one preference dataset.

    `macpo train --dataset org/name --config round_2_student --base org/model --out DIR` needs
    neither recipe nor run; its settings are `--set dpo.beta=0.1`, `--set train.max_length=2048`.
    """
    if dataset is not None:
        from macpo_data.show import progress
        from macpo_run.standalone import train_on

        if not base or out is None:
            raise MacpoError("--dataset needs a model, --base org/name, and a folder, --out DIR")
        train_on(
            dataset, base, out, config=config, revision=revision, init=init, reference=reference,
            sets=sets, progress=progress, say=_say_aside,
        )  # fmt: skip
        return _say(f"wrote    {out}")
    alone = {"--config": config, "--revision": revision, "--base": base, "--init": init,
             "--reference": reference, "--out": out}  # fmt: skip
    if unread := [name for name, value in alone.items() if value is not None]:
        raise MacpoError(f"{', '.join(unread)}: only read with --dataset; a run has a recipe")
    if reward:
        if round_ is not None or learner is not None:
            raise MacpoError("--reward is of no round or learner; leave --round and --learner out")
        with _open(recipe, runs, sets) as run:
            if dry_run:
                kept = not redo and run.store.is_done(run.plan.reward_name)
                what = "done already" if kept else "would train"
                return _say(f"{what}: {run.store.path(run.plan.reward_name)}")
            made = run.train_reward(redo)
            from macpo_data.show import print_reward_model

            print_reward_model(run.store.manifest(run.plan.reward_name) or {})
            _say(f"{made}")
            return _next(f"macpo eval --set eval.reward=trained{run.said}")
    if round_ is None:
        raise MacpoError("train what? --round N, --reward, or a dataset with --dataset")
    with _open_to_make(recipe, runs, sets) as run:
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
    with _open_to_make(recipe, runs, sets) as run:
        last = run.plan.last_round if until is None else until
        wanted = [round_] if round_ is not None else list(range(last + 1))
        steps = [step for each in wanted or [last] for step in run.select(None, each)]
        if dry_run:
            _print_plan(run, steps)
            return _print_costs(run, steps)
        for each in wanted:
            outcome = run.finish_round(each)
            why = None if outcome.waiting else run.ended(each)
            if outcome.waiting or why or each == wanted[-1]:
                break
            _print_outcome(outcome)
        if why:
            run.say(why)
        _print_outcome(outcome)
        if outcome.waiting:
            _print_flags(run, [step for step, _ in outcome.wrote])
            _say_next(run)
            raise typer.Exit(1)
        _print_results(run, each)
        _say_next(run)


@app.command()
def sweep(
    study: Annotated[
        str | None, typer.Argument(help="A shipped study's name, or a YAML file.")
    ] = None,
    recipe: RecipeOption = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,C", help="Values to compare; repeatable, then all together."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="So many (3), or these (3,4,5).", show_default="1")
    ] = None,
    until: Annotated[int | None, typer.Option(min=0, help="The last round.")] = None,
    agents: Annotated[
        str | None, typer.Option(help="Measure these, as student,teacher_1. Default: the student.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Folder under runs/ that all share.")] = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    dry_run: DryOption = False,
) -> None:
    """Make a family of recipes in one run folder, each shared step once, and compare them.

    `macpo sweep --grid dpo.beta=0.05,0.1 --seeds 3`, or `macpo sweep baselines`.
    """
    from macpo_data.show import print_standings, print_sweep, progress
    from macpo_run.sweep.study import load_study, parse_grid, parse_seeds, variants
    from macpo_run.sweep.sweep import Sweep, write

    said = {
        "recipe": recipe, "grid": parse_grid(grid or []) or None, "rounds": until, "run": run,
        "seeds": None if seeds is None else parse_seeds(seeds),
        "agents": [name.strip() for name in agents.split(",")] if agents else None,
    }  # fmt: skip
    loaded = load_study(study, {k: v for k, v in said.items() if v is not None})
    name = Path(study).stem if study else None
    shown = partial(progress, leave=False)
    family = Sweep(loaded, variants(loaded, sets), runs, shown, _say_aside, name)
    for one, other in family.twins():
        _say_aside(f"{one} and {other} come out the same: nothing that they differ in is read")
    for variant, its in {v.name: v.recipe for v in family.variants}.items():
        _warn_of_departures(its, f"{variant}: ")
    if dry_run:
        return print_sweep(family.outline())
    found = family.make()
    print_standings(found)
    for path in write(found, family.folder, name or family.home.recipe.run):
        _say(f"wrote    {path}")
    if any(m.problem for m in found.measured):
        raise typer.Exit(1)


@app.command()
def status(
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of steps, for programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again.")] = False,
) -> None:
    """Say what is done, ready, waiting or stale. Needs neither network nor model."""
    with _open(recipe, runs, sets) as run:
        if watch:
            from macpo_run import notes as live

            notes = run.store.root / live.NOTES
            return live.watch(
                lambda: live.view(
                    _titled(run),
                    found := run.states(), live.making(notes), _next_command(run, found),
                )
            )  # fmt: skip
        if not as_json:
            _print_status(run)
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
                "signs": _flags(run, step) if found[step] == "done" else [],
            }
            for step in run.plan.steps
        ]
        _say(json.dumps(rows, indent=1))


@app.command("eval")
def eval_(
    round_: Annotated[str, typer.Option("--round", help="A number, all, or base.")] = "all",
    agents: Annotated[
        str | None, typer.Option(help="Only these, as student,teacher_1. Default: all.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare with: student-positive-0, student-base, or chosen (the human)."),
    ] = None,
    export: Annotated[
        Literal["alpaca_eval", "mt_bench", "arena_hard", "human"] | None,
        typer.Option(help="Write one policy's answers for this evaluator.", rich_help_panel=OTHERS),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="The evaluator's prompts.", rich_help_panel=OTHERS)
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Where to write.", rich_help_panel=OTHERS)] = None,
    sheets: Annotated[
        list[Path] | None,
        typer.Option(
            "--import", help="A filled sheet; one for each annotator.", rich_help_panel=OTHERS
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Of the sheets; default: beside the first.", rich_help_panel=OTHERS),
    ] = None,
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    redo: Annotated[
        bool, typer.Option("--redo", help="Make anew what is damaged or made from what changed.")
    ] = False,
) -> None:
    """Measure policies on the held-out prompts: gold, reward, win rates, with intervals.

    `--export human --against POLICY --to sheet.csv` writes a blind sheet for people, and
    `--import sheet.csv` reads it when it is filled; its key is sheet.key.json.
    """
    from macpo_data.evaluation.gap import lines
    from macpo_data.evaluation.policies import choose
    from macpo_data.evaluation.results import latest
    from macpo_data.show import print_agreement, print_evaluation
    from macpo_data.signs.rules import flags

    asked = {"--export": export, "--round": round_ != "all", "--agents": agents,
             "--against": against, "--to": to, "--prompts": prompts}  # fmt: skip
    unread, reason = ["--to", "--prompts"], "only --export writes a file"
    if sheets:
        unread, reason = list(asked), "--import reads what its key says"
    elif export:
        unread = []
    if given := [name for name in unread if asked[name]]:
        raise MacpoError(f"{reason}; leave {', '.join(given)} out")
    if key and not sheets:
        raise MacpoError("--key belongs to filled sheets; name them with --import")
    with _open(recipe, runs, sets) as run:
        if sheets:
            from macpo_data.evaluation.sheets import read_sheets

            found = read_sheets(
                run.context(redo), sheets, key or sheets[0].with_suffix(".key.json")
            )
            print_evaluation(found)
            return print_agreement(run.store.manifest(f"eval/{found.paths[0].name}") or {})
        names = [name.strip() for name in agents.split(",")] if agents else []
        policies = choose(run.plan, run.store, round_, names)
        if export is None:
            found = run.evaluate(policies, against, redo)
            print_evaluation(found)
            if known := latest(run.plan, run.store):
                for line in lines(run.plan, known.responses):
                    _say(line)
            for line in flags(run.store.manifest(f"eval/{found.paths[0].name}") or {}):
                _say(f"! {line}")
            return _next(f"macpo report{run.said}")
        for line in run.export(export, policies, against, prompts, to, redo):
            _say(line)


@app.command()
def show(
    round_: RoundOption,
    learner: LearnerOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    count: CountOption = 3,
    where: Annotated[
        str | None, typer.Option(help="Only those, in SQL: 'chosen_ppl > 20'.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="In that order, in SQL: '-chosen_ppl'.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw them at random.")] = False,
) -> None:
    """Read the pairs of a round."""
    with _open(recipe, runs, sets) as run:
        steps = [s for s in run.select("gen", round_, learner) if not s.is_ceiling]
        done = [step for step in steps if run.states()[step] in ("done", "stale")]
        if not done:
            raise MacpoError(f"round {round_} has no dataset yet; run `macpo gen --round {round_}`")
        step = next((s for s in done if s.learner in run.recipe.students), done[0])
        from macpo_data.show import pick, print_pairs

        name = run.plan.name(step)
        pairs = pick(run.store.read(name, "pairs.parquet"), where, sort, sample, count)
        print_pairs(pairs, run.store.manifest(name), count, spread=not sort)
        _print_flags(run, [step])
        _say(f"{run.path(step) / 'pairs.parquet'}")


@app.command()
def report(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Recipes, side by side on one page.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", "-r", help="Likewise; repeatable.")
    ] = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    to: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one HTML page of a run: did it get better, why, and what the pairs look like."""
    from macpo_data.report.collect import collect
    from macpo_data.report.page import page
    from macpo_data.store.store import atomic

    named = [*(recipes or []), *(recipe or [])]
    opened = [_open(name, runs, sets) for name in named or (None,)]
    root = opened[0].store.root if len({run.store.root for run in opened}) == 1 else runs
    path = to or root / "report.html"
    with atomic(path) as temporary:
        temporary.write_text(page(collect([_source(run) for run in opened])), "utf-8")
    _say(f"wrote    {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if open_:
        typer.launch(path.resolve().as_uri())


@app.command()
def push(
    round_: RoundOption,
    repo: Annotated[str | None, typer.Option(help="Dataset on the Hub, as org/name.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write the same files here instead.")] = None,
    learner: LearnerOption = None,
    as_: Annotated[
        str | None, typer.Option("--as", metavar="TAG", help="Tag, if not round-N.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is private.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Add all candidates with their scores.")
    ] = False,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Also push the round's adapters to REPO-adapters.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also push the student, merged, to REPO-merged.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="Of the data, where its source states none.")
    ] = None,
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
) -> None:
    """Publish a finished round: one commit and one tag on the Hub, or a folder."""
    from macpo_data.hub import push as hub

    if repo is None and to is None:
        raise MacpoError("where to? name a dataset with --repo org/name, or a folder with --to DIR")
    with _open(recipe, runs, sets) as run:
        steps = hub.round_steps(run.plan, run.store, run.select("gen", round_, learner), learner)
        tag = hub.check_tag(as_ or f"round-{round_}" + (f"-{learner}" if learner else ""))
        said = licence or hub.source_licence(run.plan, run.store, run.say)
        wanted = hub.Push(run.plan, run.store, steps, tag, repo, candidates, said)
        if to is not None:
            changed = hub.push_to_folder(wanted, to)
            return _say(f"{'wrote' if changed else 'kept'}  {to}")
        if adapters or merge:
            from macpo_data.hub.adapters import push_adapters

            for line in push_adapters(wanted, private=private, merge=merge, progress=run.progress):
                _say(line)
        _say(hub.push_to_hub(wanted, private=private, create_pr=create_pr, say=run.say))
        _next(f"macpo pull {repo} --round {round_}")


@app.command()
def pull(
    source: Annotated[str, typer.Argument(help="org/name, or a folder of `push --to`.")],
    round_: RoundOption,
    learner: LearnerOption = None,
    revision: Annotated[str | None, typer.Option(help="A tag or commit; default round-N.")] = None,
    to: Annotated[Path, typer.Option("--recipe-to", help="Where to write its recipe.")] = Path(
        "macpo.yaml"
    ),
    runs: RunsOption = RUNS,
    local_paths: Annotated[
        bool, typer.Option("--local-paths", help="Its recipe may read files of this machine.")
    ] = False,
) -> None:
    """Bring a published round here, checked against its manifests, to train on it."""
    from macpo_data.hub.pull import pull_round

    pulled = pull_round(source, round_, runs, to, learner, revision, _say_aside, local_paths)
    for line in pulled:
        _say(line)
    recipe = [] if to == Path("macpo.yaml") else ["--recipe", str(to)]
    _next(f"macpo train --round {round_}" + _options_said(recipe, runs, None))


@app.command()
def check(
    place: Annotated[str, typer.Argument(help="A folder, a file, or org/name on the Hub.")],
    config: ConfigOption = None,
    revision: RevisionOption = None,
    split: Annotated[str, typer.Option(help="Of the dataset.")] = "train",
    trainer: Annotated[
        str | None, typer.Option("--for", help="Fail unless this trainer reads it.")
    ] = None,
    tests: Annotated[
        list[str] | None, typer.Option("--test", help="A test set to keep out; repeatable.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A model whose tokenizer counts the lengths.")
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of prompt and answer.")] = 1024,
    sets: SetOption = None,
) -> None:
    """Look at any preference dataset as each trainer would; exit 1 where something is wrong."""
    from macpo_data.forms import check as checks
    from macpo_data.loading import load_settings
    from macpo_data.models.base import Base, load_chat
    from macpo_data.show import print_check
    from macpo_data.sources import overlap
    from macpo_data.sources.tables import read_table

    settings = load_settings(sets)
    table = read_table(place, config, revision, split)
    known = [(path, overlap.texts(read_table(path, split=None))) for path in tests or []]
    if unread := [path for path, texts in known if texts is None]:
        raise MacpoError(f"{unread[0]} has no column of prompts; name another test set")
    chat = load_chat(Base(tokenizer, None), settings.chat_template) if tokenizer else None
    columns = settings.columns
    found = checks.findings(
        table, columns, place, chat=chat, max_length=max_length,
        tests=[texts for _, texts in known if texts is not None],
    )  # fmt: skip
    read = checks.readings(table, columns)
    fit = checks.verdict(found, read, trainer)
    print_check(f"{place} {config or ''}: {len(table):,} rows", found, read)
    if not fit:
        raise typer.Exit(1)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="A path, a fingerprint, or org/name@tag.")],
    b: Annotated[str, typer.Argument(help="Likewise.")],
    config: ConfigOption = None,
    count: CountOption = 3,
    runs: RunsOption = RUNS,
) -> None:
    """Compare two versions of a round: recipe, prompts, what was chosen, distributions."""
    from macpo_data.report.compare import compare, load_version
    from macpo_data.show import print_comparison

    print_comparison(compare(load_version(a, config, runs), load_version(b, config, runs)), count)


@app.command()
def doctor(
    recipe: RecipeOption = None,
    runs: RunsOption = RUNS,
    sets: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
) -> None:
    """Say what is installed and reachable, whether it fits together, and what mends it."""
    from macpo_data.loading import load_recipe
    from macpo_data.show import print_health
    from macpo_run.doctor import examine

    findings = list(examine(lambda: load_recipe(recipe, sets), runs))
    if as_json:
        _say(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        print_health(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


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
    from macpo_run.cleaning import remove, unreachable
    from macpo_run.sweep.sweep import recorded

    opened = [_open(name, runs, sets) for name in recipe or (None,)]
    if len({run.store.root for run in opened}) > 1:
        raise MacpoError("these recipes have different runs; clean one run at a time")
    for path, variants in recorded(opened[0]):
        _say_aside(f"kept: what the sweep in {path} reaches; without that file it is listed")
        opened += variants
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
    from macpo_data.loading import load_recipe
    from macpo_data.show import progress
    from macpo_run.rounds import Run

    run = Run(load_recipe(recipe, sets), runs, progress, lambda line: print(line, file=sys.stderr))
    run.label = Path(recipe).stem if recipe else run.recipe.run
    run.said = _options_said(["--recipe", recipe] if recipe else [], runs, sets)
    return run


def _open_to_make(recipe: str | None, runs: Path, sets: list[str] | None) -> Run:
    """`_open` for a command that makes steps: where the recipe is a paper's no more, it is told."""
    run = _open(recipe, runs, sets)
    _warn_of_departures(run.recipe)
    return run


def _warn_of_departures(recipe: Recipe, whose: str = "") -> None:
    from macpo_data.misfits import departures

    if settings := departures(recipe):
        _say_aside(
            f"warning: {whose}method {recipe.method} is not its paper's: {', '.join(settings)}; "
            "set its values, or call it a variant"
        )


def _source(run: Run) -> Source:
    from macpo_data.report.collect import Source

    return Source(run.label, run.plan, run.store, run.said)


def _options_said(recipe: list[str], runs: Path, sets: list[str] | None) -> str:
    """The options as they were given, so that a command to come can be copied whole."""
    words = [*recipe, *([] if runs == RUNS else ["--runs", str(runs)])]
    words += [word for setting in sets or [] for word in ("--set", setting)]
    return " " + shlex.join(words) if words else ""


def _finish(run: Run, outcome: Outcome) -> None:
    """Say what was written and what comes next; exit 1 where all of it waits."""
    _print_outcome(outcome)
    _print_flags(run, [step for step, _ in outcome.wrote])
    _say_next(run)
    if outcome.waiting and not (outcome.wrote or outcome.kept):
        raise typer.Exit(1)


def _print_outcome(outcome: Outcome) -> None:
    for step, path in outcome.wrote:
        _say(f"wrote    {step}: {path}")
    for step, path in outcome.kept:
        _say(f"kept     {step}: {path}")
    for step, reasons in outcome.waiting.items():
        _say(f"waiting  {step}: {', '.join(reasons)}")


def _print_flags(run: Run, steps: list[Step]) -> None:
    """The signs of failure of finished steps."""
    for step in steps:
        for line in _flags(run, step):
            _say(f"! {step}: {line}")


def _flags(run: Run, step: Step) -> list[str]:
    from macpo_data.signs.rules import flags

    return flags(run.store.manifest(run.plan.name(step)) or {})


def _print_plan(run: Run, steps: list[Step]) -> None:
    from macpo_data.show import print_steps

    found = run.states()
    print_steps(
        [(step, found[step], run.plan.name(step), run.waits_for(step, found)) for step in steps],
        _titled(run),
    )


def _titled(run: Run) -> str:
    from macpo_data.methods import name_of

    return f"{run.store.root}: {name_of(run.recipe)}, rounds 0..{run.plan.last_round}"


def _print_costs(run: Run, steps: list[Step]) -> None:
    """What the gen steps that are not done will ask of their models."""
    from macpo_data.generation.cost import measure
    from macpo_data.methods import method
    from macpo_data.show import print_costs

    found = run.states()
    todo = [s for s in steps if s.kind == "gen" and found[s] != "done"]
    if todo:
        sizes = measure(run.plan, run.store)
        asked = [(step, method(run.recipe, step).asks(step, run.recipe, sizes)) for step in todo]
        print_costs(asked, run.recipe, sizes.note)


def _print_results(run: Run, last: int) -> None:
    """What the run came to."""
    from macpo_data.evaluation.headline import examples, headline
    from macpo_data.evaluation.policies import trained
    from macpo_data.evaluation.results import latest
    from macpo_data.show import print_headline

    if run.recipe.data.source == "world":
        run.evaluate(trained(run.plan, run.store, last))
    known = latest(run.plan, run.store)
    answers = examples(run.plan, run.store, known) if known else []
    facts = headline(run.plan, run.store, known)
    print_headline(facts, answers, f"{_program()} status{run.said}")


def _print_status(run: Run) -> None:
    """The steps, all signs of failure, and what the probe advises."""
    from macpo_data.evaluation import probe
    from macpo_data.evaluation.advice import advise
    from macpo_data.evaluation.headline import all_signs
    from macpo_data.evaluation.results import latest
    from macpo_data.show import print_advice

    _print_plan(run, run.plan.steps)
    readings = probe.readings(run.plan, run.store)
    for line in all_signs(run.plan, run.store, readings, latest(run.plan, run.store)):
        _say(f"! {line}")
    best = probe.best_round(run.recipe, readings)
    if best and max(reading.policy.round or 0 for reading in readings) > 0:
        _say(probe.best_line(best, run.said))
    elif advice := advise(run.recipe, readings):
        print_advice(advice)


def _say_next(run: Run) -> None:
    _next(_next_command(run, run.states()))


def _next_command(run: Run, found: dict[Step, State]) -> str:
    """The command that goes on from here."""
    from macpo_data.evaluation.results import unmeasured

    last = run.ended_after()
    for step in run.plan.steps:
        if last is not None and step.round > last:
            break
        if found[step] == "ready":
            return f"macpo {step.kind} --round {step.round}{run.said}"
        if found[step] == "stale":
            which = f"--round {step.round} --learner {step.learner} --redo"
            return f"macpo {step.kind} {which}{run.said}"
    return f"macpo {'eval' if unmeasured(run.plan, run.store) else 'report'}{run.said}"


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(line)


def _say_aside(line: str) -> None:
    print(line, file=sys.stderr)


def _next(command: str) -> None:
    _say(f"next: {command.replace('macpo', _program(), 1)}")


def _program() -> str:
    """How to call this program from here: by its path where a shell would not find its name."""
    own = Path(sys.argv[0])
    here = own.name != "macpo" or shutil.which("macpo")
    return "macpo" if here else shlex.quote(os.path.relpath(own))


INTERRUPTED = "interrupted; run the same command again to go on: what is finished stays"


def main() -> None:
    """Run the command; a person's mistake is one line on stderr and exit code 1."""
    # Raised as any other error, before typer would end silently.
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except Interrupted as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(130)
    except SystemExit as ended:
        if ended.code == 130:  # what typer makes of the KeyboardInterrupt that polars raises
            print(f"error: {INTERRUPTED}", file=sys.stderr)
        raise
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


def _interrupt(*_: object) -> None:
    # Inside polars, polars raises KeyboardInterrupt before Python calls this. What is tidied up for
    # that is not broken off; raised in a generator that is being closed, this would be lost.
    if not isinstance(sys.exc_info()[1], GeneratorExit | KeyboardInterrupt):
        raise Interrupted(INTERRUPTED)


if __name__ == "__main__":
    main()
