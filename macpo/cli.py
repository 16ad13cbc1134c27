"""The `macpo` command line: one function per command parses its options and calls the work."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from macpo import options as opt
from macpo.failing import one_line_errors
from macpo.teaching import Command, Commands, completing
from macpo_data.errors import MacpoError
from macpo_run import names as known
from macpo_run.commands import ask as asking
from macpo_run.commands import check_diff_doctor as checking
from macpo_run.commands import clean as cleaning
from macpo_run.commands import convert as converting
from macpo_run.commands import eval as measuring
from macpo_run.commands import gen_train_run as making
from macpo_run.commands import init as starting
from macpo_run.commands import push_pull as sharing
from macpo_run.commands import status_show_report as looking
from macpo_run.commands import sweep as sweeping
from macpo_run.commands.run_options import RUNS, DatasetOptions, RunOptions

BEGIN, MAKE, LOOK, SHARE = "Begin", "Make", "Look", "Give away, and other data"  # in --help

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Make preference data round by round, and train on it.

Weak teachers and a strong student teach each other (MACPO). Each round is a dataset. What is
finished is kept: the same command goes on where it stopped.
""",
)


def main() -> None:
    """Run the command; a person's mistake is one line on stderr, and exit code 1 or 2."""
    if "_MACPO_COMPLETE" in os.environ:  # a shell asks, and takes each line for a name of its own
        os.environ["COLUMNS"] = "10000"
    with one_line_errors():
        sys.exit(app(prog_name="macpo", standalone_mode=False))


@app.callback()
def _options(version: opt.VersionOption = False) -> None:
    """Carry the options that stand before a command."""


@app.command(cls=Command, rich_help_panel=BEGIN)
def init(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe.", autocompletion=completing(known.recipes))
    ] = "quickstart",
    to: Annotated[Path, typer.Option(help="Where to write it.")] = Path("macpo.yaml"),
    full: opt.FullOption = False,
    data: opt.OwnDataOption = None,
    config: opt.ConfigOption = None,
    split: opt.SplitOption = None,
    columns: opt.ColumnsOption = None,
) -> None:
    """Copy a shipped recipe to ./macpo.yaml, to be edited.

    It holds what is not at its default, and why. Beside it goes a schema, from which an editor with
    a YAML language server explains and completes keys.

    Your own preference data, a file, a folder or org/name on the Hub, take the place of the
    recipe's: `macpo init --data pairs.jsonl`, then `macpo run --dry-run` and `macpo run`. Their
    prompts are shared out among the teachers' half, the student's half and a test that nothing
    learns from. Where columns have other names: `macpo init hh_helpful --data org/name --split
    train --columns prompt=question,chosen=best,rejected=worst`.
    """
    if data is None:
        alone = {"--config": config, "--split": split, "--columns": columns}
        if unread := _given(alone):
            raise MacpoError(f"{unread}: only read with --data, your own preference data")
        return starting.init(recipe, to, full)
    starting.init(recipe, to, full, DatasetOptions(data, config, None, split, columns))


@app.command(cls=Command, rich_help_panel=MAKE)
def gen(
    round_: opt.RoundOption,
    learner: opt.LearnerOption = None,
    recipe: opt.RecipeOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    dry_run: opt.DryOption = False,
    on: opt.OnOption = None,
    redo: opt.RedoOption = False,
) -> None:
    """Write every dataset of a round whose inputs exist."""
    _belongs(on, dry_run)
    options = RunOptions(recipe, runs, sets)
    making.make_round("gen", options, round_, learner, dry_run=dry_run, redo=redo, on=on)


@app.command(cls=Command, rich_help_panel=MAKE)
def train(
    round_: opt.MaybeRoundOption = None,
    learner: opt.LearnerOption = None,
    recipe: opt.RecipeOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    dry_run: opt.DryOption = False,
    on: opt.OnOption = None,
    redo: opt.RedoOption = False,
    reward: opt.RewardOption = False,
    dataset: opt.DatasetOption = None,
    config: opt.ConfigOption = None,
    revision: opt.RevisionOption = None,
    split: opt.SplitOption = None,
    columns: opt.ColumnsOption = None,
    base: opt.BaseOption = None,
    init: opt.InitOption = None,
    reference: opt.ReferenceOption = None,
    out: opt.OutOption = None,
) -> None:
    """Train every learner of a round whose dataset exists, or on any one preference dataset.

    `macpo train --dataset org/name --config round_2_student --base org/model --out DIR` needs
    neither recipe nor run; its settings are `--set dpo.beta=0.1`, `--set train.max_length=2048`.
    """
    _belongs(on, dry_run)
    if dataset is not None:
        flags = {"--redo": redo, "--reward": reward, "--dry-run": dry_run, "--runs": runs != RUNS}
        of_a_run: dict[str, object] = {name: True for name, is_on in flags.items() if is_on}
        of_a_run |= {"--round": round_, "--learner": learner, "--recipe": recipe}
        if unread := _given(of_a_run):
            raise MacpoError(f"{unread}: not read with --dataset, which is of no run")
        if not base or out is None:
            raise MacpoError("--dataset needs a model, --base org/name, and a folder, --out DIR")
        place = DatasetOptions(dataset, config, revision, split, columns)
        return making.train_dataset(making.DatasetTraining(place, base, out, init, reference, sets))
    alone = {"--config": config, "--revision": revision, "--split": split, "--columns": columns,
             "--base": base, "--init": init, "--reference": reference, "--out": out}  # fmt: skip
    if unread := _given(alone):
        raise MacpoError(f"{unread}: only read with --dataset; a run has a recipe")
    options = RunOptions(recipe, runs, sets)
    if reward:
        if round_ is not None or learner is not None:
            raise MacpoError("--reward is of no round or learner; leave --round and --learner out")
        return making.train_reward(options, dry_run=dry_run, redo=redo, on=on)
    if round_ is None:
        raise MacpoError("train what? --round N, --reward, or a dataset with --dataset")
    making.make_round("train", options, round_, learner, dry_run=dry_run, redo=redo, on=on)


@app.command(cls=Command, rich_help_panel=MAKE)
def run(
    round_: opt.OnlyRoundOption = None,
    until: Annotated[int | None, typer.Option(help="Finish all rounds up to this one.")] = None,
    recipe: opt.RecipeOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    dry_run: opt.DryOption = False,
    on: opt.OnOption = None,
) -> None:
    """Finish a round, or all rounds up to one: gen, train, gen, train."""
    if round_ is not None and until is not None:
        raise MacpoError("--round and --until exclude each other")
    _belongs(on, dry_run)
    making.run_rounds(RunOptions(recipe, runs, sets), round_, until, dry_run=dry_run, on=on)


@app.command(cls=Command, rich_help_panel=MAKE)
def sweep(
    study: opt.StudyArgument = None,
    recipe: opt.RecipeOption = None,
    grid: opt.GridOption = None,
    seeds: opt.SeedsOption = None,
    until: Annotated[int | None, typer.Option(min=0, help="The last round.")] = None,
    agents: opt.MeasuredOption = None,
    run: Annotated[str | None, typer.Option(help="Folder under runs/ that all share.")] = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    dry_run: opt.DryOption = False,
    on: opt.OnOption = None,
) -> None:
    """Make a family of recipes in one run folder, each shared step once, and compare them.

    `macpo sweep --grid dpo.beta=0.05,0.1 --seeds 3`, or `macpo sweep baselines`. A study file may
    name its `primary` contrast, {first: A, second: B}, which is tested alone; all others are
    corrected for their number.
    """
    from macpo_run.sweep.study import parse_grid, parse_seeds

    changes = {
        "recipe": recipe, "grid": parse_grid(grid or []) or None, "rounds": until, "run": run,
        "seeds": None if seeds is None else parse_seeds(seeds), "agents": _names(agents) or None,
    }  # fmt: skip
    changes = {name: value for name, value in changes.items() if value is not None}
    _belongs(on, dry_run)
    sweeping.sweep(study, changes, runs, sets, dry_run=dry_run, on=on)


@app.command(cls=Command, rich_help_panel=LOOK)
def status(
    recipe: opt.RecipeOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    as_json: opt.JsonOption = False,
    watch: opt.WatchOption = False,
) -> None:
    """Say what is done, ready, waiting or stale. Needs neither network nor model."""
    show = looking.status_as_json if as_json else looking.status
    (looking.watch if watch else show)(RunOptions(recipe, runs, sets))


@app.command("eval", cls=Command, rich_help_panel=LOOK)
def eval_(
    round_: opt.PoliciesOption = "all",
    agents: opt.AgentsOption = None,
    against: opt.AgainstOption = None,
    export: opt.ExportOption = None,
    prompts: opt.PromptsOption = None,
    to: opt.ExportToOption = None,
    sheets: opt.ImportOption = None,
    key: opt.KeyOption = None,
    recipe: opt.RecipeOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    redo: opt.RemeasureOption = False,
) -> None:
    """Measure policies on the held-out prompts: gold, reward, win rates, with intervals.

    `--export human --against POLICY --to sheet.csv` writes a blind sheet for people, and
    `--import sheet.csv` reads it when it is filled; its key is sheet.key.json.
    """
    options, names = RunOptions(recipe, runs, sets), _names(agents)
    files = {"--to": to, "--prompts": prompts}
    if sheets:
        others = {"--export": export, "--round": None if round_ == "all" else round_,
                  "--agents": agents, "--against": against, **files}  # fmt: skip
        if unread := _given(others):
            raise MacpoError(f"--import reads what its key says; leave {unread} out")
        return measuring.import_sheets(options, sheets, key, redo=redo)
    if key:
        raise MacpoError("--key belongs to filled sheets; name them with --import")
    if export:
        return measuring.export(options, export, round_, names, against, prompts, to, redo=redo)
    if unread := _given(files):
        raise MacpoError(f"only --export writes a file; leave {unread} out")
    measuring.measure(options, round_, names, against, redo=redo)


@app.command(cls=Command, rich_help_panel=LOOK)
def ask(
    model: opt.ModelArgument,
    questions: opt.QuestionsArgument,
    tokens: opt.TokensOption = 128,
    sets: opt.SetOption = None,
) -> None:
    """Say what a model answers, greedily: an adapter on its base, a checkpoint, or a base."""
    asking.ask(model, questions, tokens, sets)


@app.command(cls=Command, rich_help_panel=LOOK)
def show(
    round_: opt.RoundOption,
    learner: opt.LearnerOption = None,
    recipe: opt.RecipeOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    count: opt.CountOption = 3,
    where: opt.WhereOption = None,
    sort: opt.SortOption = None,
    sample: opt.SampleOption = False,
) -> None:
    """Read the pairs of a round."""
    options = RunOptions(recipe, runs, sets)
    looking.show(options, round_, learner, count=count, where=where, sort=sort, sample=sample)


@app.command(cls=Command, rich_help_panel=LOOK)
def report(
    recipes: opt.RecipesArgument = None,
    recipe: opt.RecipesOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    to: opt.PageOption = None,
    open_: opt.OpenOption = False,
) -> None:
    """Write one HTML page of a run: did it get better, why, and what the pairs look like."""
    path = looking.report([*(recipes or []), *(recipe or [])], runs, sets, to)
    if open_:
        typer.launch(path.resolve().as_uri())


@app.command(cls=Command, rich_help_panel=SHARE)
def push(
    round_: opt.RoundOption,
    repo: opt.RepoOption = None,
    to: opt.FolderOption = None,
    learner: opt.LearnerOption = None,
    as_: opt.TagOption = None,
    private: opt.PrivateOption = False,
    create_pr: opt.PullRequestOption = False,
    candidates: opt.CandidatesOption = False,
    adapters: opt.AdaptersOption = False,
    negatives: opt.NegativesOption = False,
    merge: opt.MergeOption = False,
    licence: opt.LicenceOption = None,
    recipe: opt.RecipeOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
) -> None:
    """Publish a finished round: one commit and one tag on the Hub, or a folder."""
    publication = sharing.Publication(
        round_, learner, repo, to, as_, licence, private, create_pr, candidates, adapters,
        negatives, merge,
    )  # fmt: skip
    sharing.push(RunOptions(recipe, runs, sets), publication)


@app.command(cls=Command, rich_help_panel=SHARE)
def pull(
    source: opt.OriginArgument,
    round_: opt.RoundOption,
    learner: opt.LearnerOption = None,
    revision: opt.TagToPullOption = None,
    to: opt.RecipeToOption = Path("macpo.yaml"),
    runs: opt.RunsOption = RUNS,
    local_paths: opt.LocalPathsOption = False,
) -> None:
    """Bring a published round here, checked against its manifests, to train on it."""
    sharing.pull(source, round_, learner, revision, runs, to, local_paths=local_paths)


@app.command(cls=Command, rich_help_panel=SHARE)
def check(
    place: opt.PlaceArgument,
    config: opt.ConfigOption = None,
    revision: opt.RevisionOption = None,
    split: opt.SplitOption = None,
    columns: opt.ColumnsOption = None,
    trainer: opt.TrainerOption = None,
    tests: opt.TestOption = None,
    tokenizer: opt.TokenizerOption = None,
    max_length: opt.LengthOption = 1024,
    sets: opt.SetOption = None,
) -> None:
    """Look at any preference dataset as each trainer would; exit 1 where something is wrong."""
    dataset = DatasetOptions(place, config, revision, split, columns)
    checking.check(dataset, trainer, tests or [], tokenizer, max_length, sets)


@app.command(cls=Command, rich_help_panel=SHARE)
def convert(
    place: opt.PlaceArgument,
    trainer: opt.TargetOption,
    to: opt.TargetFolderOption,
    config: opt.ConfigOption = None,
    revision: opt.RevisionOption = None,
    split: opt.SplitOption = None,
    columns: opt.ColumnsOption = None,
    sets: opt.SetOption = None,
) -> None:
    """Write any preference dataset in the form of one trainer, with the settings that read it.

    `macpo convert pairs.csv --columns prompt=q,chosen=a,rejected=b --for axolotl --to DIR` writes
    train.jsonl and the snippet for the trainer's own settings. What a form cannot say is no row in
    it: it is left out with its reason, and columns and keys that are lost are named. Text that is
    rendered already is written as it is with --set chat_template=none.
    """
    dataset = DatasetOptions(place, config, revision, split, columns)
    converting.convert(dataset, trainer, to, sets)


@app.command(cls=Command, rich_help_panel=SHARE)
def diff(
    a: opt.VersionArgument,
    b: opt.OtherVersionArgument,
    config: opt.ConfigOption = None,
    count: opt.CountOption = 3,
    runs: opt.RunsOption = RUNS,
) -> None:
    """Compare two versions of a round: recipe, prompts, what was chosen, distributions."""
    checking.diff(a, b, config, count, runs)


@app.command(cls=Command, rich_help_panel=BEGIN)
def doctor(
    recipe: opt.RecipeOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    as_json: opt.HealthJsonOption = False,
) -> None:
    """Say what is installed and reachable, whether it fits together, and what mends it."""
    checking.doctor(recipe, runs, sets, as_json=as_json)


@app.command(cls=Command, rich_help_panel=BEGIN)
def clean(
    recipe: opt.KeptRecipesOption = None,
    runs: opt.RunsOption = RUNS,
    sets: opt.SetOption = None,
    checkpoints: opt.CheckpointsOption = False,
    yes: opt.YesOption = False,
) -> None:
    """List, and with --yes remove, results of the run that no named recipe reaches.

    A folder that several recipes share needs all of them named.
    """
    cleaning.clean(recipe or [], runs, sets, remove=yes, checkpoints=checkpoints)


def _names(text: str | None) -> list[str]:
    """`student,teacher_1` as a person types it."""
    return [name.strip() for name in text.split(",")] if text else []


def _given(options: Mapping[str, object]) -> str:
    """The options that were given, of some that nothing would read."""
    return ", ".join(name for name, value in options.items() if value is not None)


def _belongs(on: str | None, dry_run: bool) -> None:
    """Refuse hardware that nothing is planned for."""
    if on and not dry_run:
        raise MacpoError("--on names hardware to plan for; say --dry-run as well")
