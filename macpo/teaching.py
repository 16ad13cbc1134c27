"""What --help says below the options: examples, and the names that a command takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from typer import TyperException
from typer.core import TyperCommand, TyperGroup

from macpo_run import names

Names = Callable[[], dict[str, str]]

# By command: what to type, and what that does.
EXAMPLES = {
    "macpo": {
        "macpo run --until 2": "a small world on this machine, in minutes; no download",
        "macpo init --data pairs.jsonl": "a recipe on preference data of your own",
        "macpo run --dry-run": "what it takes, before anything is loaded",
        "macpo report": "did it get better, why, and all the pairs",
        "macpo doctor": "what is missing here",
    },
    "init": {
        "macpo init hh_helpful": "a recipe of the paper's",
        "macpo init --data pairs.jsonl": "tiny bases, on your own data",
        "macpo init hh_helpful --data org/name --split train": "a dataset of the Hub",
        "macpo init quickstart --full --to full.yaml": "every key, explained",
    },
    "gen": {
        "macpo gen --round 0": "the datasets of round 0 whose inputs exist",
        "macpo gen --round 1 --dry-run": "calls, tokens, money",
        "macpo gen --round 1 --learner student --redo": "one dataset anew",
    },
    "train": {
        "macpo train --round 0": "every learner of round 0 whose dataset exists",
        "macpo train --reward": "a reward model of D1's human pairs",
        "macpo train --dataset pairs.jsonl --base org/model --out adapter": "no recipe, no run",
    },
    "run": {
        "macpo run --until 2": "everything up to round 2; killed, it goes on where it stopped",
        "macpo run --round 1 --set sampling.temperature=0.8": "the new value lands beside the old",
        "macpo run --dry-run --on 8xA100-80GB": "what it takes on another machine",
    },
    "sweep": {
        "macpo sweep --grid dpo.beta=0.05,0.1 --seeds 3": "six recipes, side by side",
        "macpo sweep baselines --dry-run": "a shipped study: how many steps, how long",
    },
    "status": {
        "macpo status": "what is done, ready, waiting, stale, and the next command",
        "macpo status --watch": "the same while another process works",
    },
    "eval": {
        "macpo eval": "all policies on the held-out prompts",
        "macpo eval --agents student --against student-positive-0": "win rates over round 0",
        "macpo eval --export human --against chosen --agents student --round 2 --to sheet.csv":
            "a blind sheet for people",
    },
    "ask": {
        "macpo ask adapter 'What is the capital of France?'": "what `train --dataset` made",
        "macpo ask world:strong 'Good morning! What do you like about chess?'": "a bare base",
    },
    "show": {
        "macpo show --round 1": "three pairs",
        "macpo show --round 1 --where 'chosen_ppl > 20' --sort '-chosen_ppl'": "the odd ones",
    },
    "report": {
        "macpo report --open": "in the browser",
        "macpo report mine.yaml other.yaml": "two recipes on one page",
    },
    "push": {
        "macpo push --round 1 --to published": "a folder",
        "macpo push --round 1 --repo org/name --adapters": "the Hub, with the positive adapters",
    },
    "pull": {"macpo pull org/name --round 1": "then it says how to train on it"},
    "check": {
        "macpo check pairs.jsonl": "as each trainer sees it",
        "macpo check pairs.jsonl --for trl": "exit code 1 unless TRL reads it",
        "macpo check other.csv --columns prompt=question,chosen=best,rejected=worst": "other names",
    },
    "convert": {
        "macpo convert pairs.jsonl --for axolotl --to DIR": "train.jsonl and the settings",
    },
    "diff": {"macpo diff org/name@round-1 org/name@round-2": "two published rounds"},
    "doctor": {"macpo doctor --recipe hh_helpful": "what that recipe needs and is not here"},
    "clean": {
        "macpo clean": "list what the recipe no longer reaches",
        "macpo clean --yes": "and remove it",
    },
}  # fmt: skip
# By command: a heading, and the names below it.
LISTS: dict[str, tuple[str, Names]] = {
    "init": ("Recipes", names.recipes),
    "sweep": ("Studies", names.studies),
    "check": ("Trainers", names.trainers),
    "convert": ("Trainers", names.trainers),
}


def below(command: str) -> str:
    """The end of a command's --help, as Markdown."""
    lines = _list("Examples", {f"`{typed}`": does for typed, does in EXAMPLES[command].items()})
    if command in LISTS:
        heading, known = LISTS[command]
        lines += _list(heading, {f"`{name}`": what for name, what in known().items()})
    return "\n".join(lines)


def _list(heading: str, entries: dict[str, str]) -> list[str]:
    return [f"**{heading}**", "", *(f"- {name}: {what}" for name, what in entries.items()), ""]


class Command(TyperCommand):
    """A command whose --help teaches; what stands at its end is read only when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        self.epilog = below(str(self.name))
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; an error always knows of which command it is."""
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            mistake: Any = error  # of an option without its value the parser says no command
            mistake.ctx = getattr(mistake, "ctx", None) or ctx
            raise


class Commands(TyperGroup):
    """All commands together, likewise."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        self.epilog = below("macpo")
        super().format_help(ctx, formatter)


def completing(known: Names, end: str = "") -> Callable[[str], Iterator[tuple[str, str]]]:
    """What a shell offers for an option: names that begin as what is typed, each with what it is.

    Args:
        known: the names.
        end: stands behind each, such as the = of a key.
    """

    def complete(incomplete: str) -> Iterator[tuple[str, str]]:
        return ((f"{name}{end}", what) for name, what in known().items()
                if name.startswith(incomplete))  # fmt: skip

    return complete
