"""How a trainer is described: the row formats it reads, and how it uses each kind of data.

A form is written as a configuration of its own into every tree that macpo publishes. Several
trainers may share one. A snippet is a Jinja template, and sees:

    place    the dataset's id on the Hub, or a folder
    name     the plain configuration, such as round_2_student
    config   the configuration in the form that this trainer reads
    tag      the tag that pins the round; None for a folder
    beta, gamma    of DPO with its SFT term, as in the recipe
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

from macpo_data.forms.shape import Shape
from macpo_data.schema import MESSAGES, PUBLISHED, PUBLISHED_SFT, Table

Answer = tuple[bool, str]  # whether the trainer reads the dataset, and how, or why not
# Of each learner's dataset of a round, by name: its configurations, each with its files.
Tree = Mapping[str, Mapping[str, list[str]]]


@dataclass(frozen=True)
class Form:
    """Rows in the shape that a trainer wants."""

    suffix: str  # of the configuration's name
    table: Table
    # From PUBLISHED, or PUBLISHED_SFT with `whole`: whether the row is the last turn of a
    # conversation all of whose turns may be learned.
    rows: Callable[[pl.DataFrame], pl.DataFrame]
    words: str  # on the card, after the configuration's name


@dataclass(frozen=True)
class Use:
    """How a trainer uses data of one kind."""

    form: Form  # what is published for it
    snippet: str  # what a person types or writes into a file
    reads: Callable[[Shape], Answer]  # what it makes of any dataset


@dataclass(frozen=True)
class Trainer:
    """One that learns from what macpo publishes."""

    name: str  # as `macpo check --for` knows it
    title: str  # over its snippet on the card
    pairs: Use
    fine_tuning: Use | None = None  # None where nobody looked how it does that
    # Files that it wants at the top of the tree, from all that is there and the dataset's id.
    files: Callable[[Tree, str | None], dict[str, bytes]] | None = None


PLAIN = Form(
    "",
    PUBLISHED,
    lambda rows: rows,
    "`prompt`, `chosen`, `rejected` as message lists, with where each side came from and how it "
    "scored; `chosen_text` and `rejected_text` are the same as text.",
)
FULL = Form(
    "_full",
    {"chosen": MESSAGES, "rejected": MESSAGES, "prompt_id": pl.String()},  # no prompt to double it
    lambda rows: rows.with_columns(
        pl.col("prompt").list.concat(pl.col(side)).alias(side) for side in ("chosen", "rejected")
    ),
    "the prompt inside both sides; on the branch `full` it is the default.",
)
TURNS = Form(
    "",
    PUBLISHED_SFT,
    lambda rows: rows,
    "`prompt` and `completion` as message lists, a row for each turn, with where the completion "
    "came from.",
)
CONVERSATIONS = Form(
    "_messages",
    {"messages": MESSAGES},
    lambda rows: rows.filter("whole").select(
        messages=pl.col("prompt").list.concat(pl.col("completion"))
    ),
    "whole conversations as `messages`, and nothing else.",
)


def reads_full(shape: Shape) -> Answer:
    """Of a trainer that takes nothing but the full form."""
    if shape.full:
        return True, "whole conversations"
    return False, "wants the prompt inside both sides, as messages"


WANTS_CONVERSATIONS = "wants whole conversations, as `messages`"
