"""Prints scores of policies, human verdicts, and a reward model's accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from macpo_data.errors import plain as without_controls
from macpo_data.evaluation.draws import described
from macpo_data.evaluation.measures import WHO, lengths
from macpo_data.evaluation.policies import is_of_policy
from macpo_data.evaluation.verdict import TO_SCORE
from macpo_data.plan import Policy
from macpo_run.terminal.text import interval, make_table, plain

if TYPE_CHECKING:
    from macpo_data.evaluation.results import Evaluation

MEASURES = {"gold": "gold", "reward": "reward", "win": "win", "win_lc": "LC win"}
CHANCE = 0.2  # Krippendorff's alpha below which agreement is hardly more than chance
KINDS = ["measure", "against", "by"]  # columns of an evaluation that together name a measurement


def print_evaluation(evaluation: Evaluation) -> None:
    """A row per policy, a column per measure, each with its 95 % interval.

    Without a measure: how long the answers are, and who could score them.
    """
    measurements = evaluation.table.select(KINDS).unique(maintain_order=True).rows()
    console = Console()
    console.print(_table_of_policies(evaluation, measurements))
    how = described(evaluation.sampling)
    if measurements:
        console.print(plain(f"held-out: {how}, mean over prompts [95 %]"))
    else:
        console.print(plain(f"held-out: {how}. Nobody has scored them. {TO_SCORE}"))
    for measure, against, by in measurements:
        controlled = ", as if both were equally long" if measure == "win_lc" else ""
        versus = f" against {against}" if against else ""
        console.print(plain(f"{MEASURES[measure]}: by {by}{versus}{controlled}"))
    for path in evaluation.paths:
        print(path / "table.parquet")


def _table_of_policies(evaluation: Evaluation, measurements: list[tuple[Any, ...]]) -> Table:
    answers = evaluation.responses.group_by(WHO, maintain_order=True)
    rows = [(Policy(str(agent), *rest), lengths(own)) for (agent, *rest), own in answers]
    cut = ["cut"] if any(length["truncated"] for _, length in rows) else []
    names = ("chars", *cut, *(MEASURES[measure] for measure, _, _ in measurements))
    numbers = (Column(name, justify="right", overflow="fold") for name in names)
    table = make_table(Column("held-out", no_wrap=True), *numbers)
    for policy, length in rows:
        scores = evaluation.table.filter(is_of_policy(policy)).iter_rows(named=True)
        values = {tuple(row[k] for k in KINDS): row for row in scores}
        table.add_row(
            str(policy),
            f"{length['chars']:.0f}",
            *([f"{length['truncated']:.0%}"] if cut else []),
            *(Text(interval(values[m]) if m in values else "") for m in measurements),
        )
    return table


def print_agreement(manifest: dict[str, Any]) -> None:
    """How many verdicts each annotator gave, and how far they agree."""
    judge = manifest["judge"]
    for who, count in zip(judge["annotators"], judge["verdicts"], strict=True):
        print(f"{without_controls(who)}: {count} verdicts")
    alpha = judge["krippendorff_alpha"]
    print(f"agreement (Krippendorff's alpha): {'-' if alpha is None else f'{alpha:.3f}'}")
    if alpha is not None and alpha < CHANCE:
        print(
            "! the annotators hardly agree more than by chance: read some answers together, and "
            "say more clearly what is better, before you take the win rate for one"
        )


def print_reward_model(manifest: dict[str, Any]) -> None:
    """How well a reward model tells the human's chosen answer on held-out pairs."""
    accuracy, pairs = manifest["held_out_accuracy"], manifest["held_out_pairs"]
    if accuracy["mean"] is None:
        print("no held-out pairs: the test part has no chosen and rejected answers")
        return
    print(f"accuracy {interval(accuracy)} on {pairs} held-out pairs")
