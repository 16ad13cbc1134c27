"""Command-line options that several commands share, and those with long help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from macpo.teaching import completing
from macpo_run import names as known

# Headings in --help, for options that belong together.
ALONE = "Any dataset, without a run"
OTHERS = "For other evaluators, and people"


def _print_version(wanted: bool) -> None:
    if wanted:
        from macpo import __version__

        print(f"macpo {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
]

# Which run a command is about.
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="A shipped recipe's name, or a YAML file. Default: ./macpo.yaml if there is one, else "
        "quickstart.",
        autocompletion=completing(known.recipes),
    ),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Lay a.b=c over the recipe; repeatable.",
        autocompletion=completing(known.keys, "="),
    ),
]

# Which of its steps, and what happens to them.
ROUND = typer.Option("--round", help="0 initialises; 1.. contrast.")
RoundOption = Annotated[int, ROUND]
MaybeRoundOption = Annotated[int | None, ROUND]
OnlyRoundOption = Annotated[int | None, typer.Option("--round", help="Finish this round.")]
LearnerOption = Annotated[str | None, typer.Option("--learner", help="Only this agent.")]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what there is to do and what it takes.")
]
OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="HARDWARE",
        help="With --dry-run: plan for 8xA100-80GB, or 2xCPU-24GB. Default: this machine.",
        autocompletion=completing(known.machines),
    ),
]
RedoOption = Annotated[
    bool, typer.Option("--redo", help="Make the steps anew; old results are moved aside.")
]

# `init`.
FullOption = Annotated[
    bool, typer.Option("--full", help="Every key, with what it means and its default.")
]

OwnDataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PLACE",
        help="Your own preference data in the place of the recipe's: a file, a folder, or org/name "
        "on the Hub.",
    ),
]

# `train` without a round.
RewardOption = Annotated[
    bool, typer.Option("--reward", help="Train a reward model on D1's human pairs, for `eval`.")
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        help="Train on this instead: a dataset on the Hub, a folder or a file.",
        rich_help_panel=ALONE,
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", help="Of the dataset, such as round_2_student.", rich_help_panel=ALONE
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option(help="Tag or commit of the dataset.", rich_help_panel=ALONE)
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Hub id, folder, or world:strong (tiny).", rich_help_panel=ALONE),
]
InitOption = Annotated[
    str | None, typer.Option(help="Adapter to go on from.", rich_help_panel=ALONE)
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(help="Adapter to hold it to, such as round 0's.", rich_help_panel=ALONE),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the new adapter.", rich_help_panel=ALONE)
]

# `ask`.
ModelArgument = Annotated[
    str,
    typer.Argument(help="An adapter's or a model's folder, world:strong, or org/name on the Hub."),
]
QuestionsArgument = Annotated[list[str], typer.Argument(help="Each one is answered by itself.")]
TokensOption = Annotated[int, typer.Option(min=1, help="Of an answer, at most.")]

# `sweep`.
StudyArgument = Annotated[
    str | None,
    typer.Argument(
        help="A shipped study's name, or a YAML file.", autocompletion=completing(known.studies)
    ),
]
GridOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=A,B,C",
        help="Values to compare; repeatable, then all together.",
        autocompletion=completing(known.keys, "="),
    ),
]
SeedsOption = Annotated[
    str | None,
    typer.Option(
        help="So many (3; a study's first ones), or these (3,4,5, and 3, for one).",
        show_default="1",
    ),
]
MeasuredOption = Annotated[
    str | None, typer.Option(help="Measure these, as student,teacher_1. Default: the student.")
]

# `eval`.
PoliciesOption = Annotated[str, typer.Option("--round", help="A number, all, or base.")]
AgentsOption = Annotated[
    str | None, typer.Option(help="Only these, as student,teacher_1. Default: all.")
]
AgainstOption = Annotated[
    str | None,
    typer.Option(help="Compare with: student-positive-0, student-base, or chosen (the human)."),
]
ExportOption = Annotated[
    Literal["alpaca_eval", "mt_bench", "arena_hard", "human"] | None,
    typer.Option(help="Write one policy's answers for this evaluator.", rich_help_panel=OTHERS),
]
PromptsOption = Annotated[
    Path | None, typer.Option(help="The evaluator's prompts.", rich_help_panel=OTHERS)
]
ExportToOption = Annotated[
    Path | None, typer.Option(help="Where to write.", rich_help_panel=OTHERS)
]
ImportOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--import", help="A filled sheet; one for each annotator.", rich_help_panel=OTHERS
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(help="Of the sheets; default: beside the first.", rich_help_panel=OTHERS),
]
RemeasureOption = Annotated[
    bool, typer.Option("--redo", help="Make anew what is damaged or made from what changed.")
]

# `status`, `show`, `diff`, `report`.
JsonOption = Annotated[bool, typer.Option("--json", help="A list of steps, for programs.")]
WatchOption = Annotated[bool, typer.Option("--watch", help="Look again and again.")]
CountOption = Annotated[int, typer.Option("--count", "-n", min=1, help="Pairs to print.")]
WhereOption = Annotated[str | None, typer.Option(help="Only those, in SQL: 'chosen_ppl > 20'.")]
SortOption = Annotated[str | None, typer.Option(help="In that order, in SQL: '-chosen_ppl'.")]
SampleOption = Annotated[bool, typer.Option("--sample", help="Draw them at random.")]
RecipesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Recipes, side by side on one page.", autocompletion=completing(known.recipes)
    ),
]
RecipesOption = Annotated[
    list[str] | None, typer.Option("--recipe", "-r", help="Likewise; repeatable.")
]
PageOption = Annotated[Path | None, typer.Option(help="Where to write the page.")]
OpenOption = Annotated[bool, typer.Option("--open", help="Show it in the browser.")]

# `push` and `pull`.
RepoOption = Annotated[str | None, typer.Option(help="Dataset on the Hub, as org/name.")]
FolderOption = Annotated[Path | None, typer.Option(help="Write the same files here instead.")]
TagOption = Annotated[str | None, typer.Option("--as", metavar="TAG", help="Tag, if not round-N.")]
PrivateOption = Annotated[bool, typer.Option("--private", help="A new repository is private.")]
PullRequestOption = Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")]
CandidatesOption = Annotated[
    bool, typer.Option("--candidates", help="Add all candidates with their scores.")
]
AdaptersOption = Annotated[
    bool, typer.Option("--adapters", help="Also push the round's adapters to REPO-adapters.")
]
NegativesOption = Annotated[
    bool,
    typer.Option(
        "--negatives",
        help="With --adapters, also the negative twins: models fine-tuned to behave badly, for "
        "research alone. Without it they are left out.",
    ),
]
MergeOption = Annotated[
    bool,
    typer.Option("--merge", help="Also the student as one model, to REPO-merged or DIR-merged."),
]
LicenceOption = Annotated[
    str | None, typer.Option("--license", help="Of the data, where its source states none.")
]
OriginArgument = Annotated[str, typer.Argument(help="org/name, or a folder of `push --to`.")]
TagToPullOption = Annotated[str | None, typer.Option(help="A tag or commit; default round-N.")]
RecipeToOption = Annotated[Path, typer.Option("--recipe-to", help="Where to write its recipe.")]
LocalPathsOption = Annotated[
    bool, typer.Option("--local-paths", help="Its recipe may read files of this machine.")
]

# `check`.
PlaceArgument = Annotated[str, typer.Argument(help="A folder, a file, or org/name on the Hub.")]
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="Of the dataset; default: train, or the only one.",
        rich_help_panel=ALONE,
        show_default=False,
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=COLUMN,...",
        help="Which columns hold what, where their names are not the usual ones: "
        "prompt=question,chosen=best,rejected=worst. Other names: system, tools; first, second, "
        "label (two answers, and which is better); answers, score (several scored answers).",
        rich_help_panel=ALONE,
    ),
]
TrainerOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="TRAINER",
        help="Fail unless this trainer reads it.",
        autocompletion=completing(known.trainers),
    ),
]
TestOption = Annotated[
    list[str] | None, typer.Option("--test", help="A test set to keep out; repeatable.")
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="A model whose tokenizer counts the lengths.")
]
LengthOption = Annotated[int, typer.Option(min=1, help="Tokens of prompt and answer.")]

# `convert`.
TargetOption = Annotated[
    str,
    typer.Option(
        "--for",
        metavar="TRAINER",
        help="For whom; they stand below.",
        autocompletion=completing(known.trainers),
    ),
]
TargetFolderOption = Annotated[
    Path, typer.Option("--to", metavar="DIR", help="A new folder, which appears when it is whole.")
]

# `diff`, `doctor`, `clean`.
VersionArgument = Annotated[str, typer.Argument(help="A path, a fingerprint, or org/name@tag.")]
OtherVersionArgument = Annotated[str, typer.Argument(help="Likewise.")]
HealthJsonOption = Annotated[bool, typer.Option("--json", help="For a program to read.")]
KeptRecipesOption = Annotated[
    list[str] | None,
    typer.Option("--recipe", "-r", help="Keep what this recipe reaches; repeatable."),
]
CheckpointsOption = Annotated[
    bool,
    typer.Option(
        "--checkpoints",
        help="Also the weights of checkpoints of earlier rounds that nothing to come needs; their "
        "manifests stay.",
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Remove them.")]
