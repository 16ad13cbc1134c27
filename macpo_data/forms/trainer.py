"""How a trainer is described: the row formats it reads, and how it uses each kind of data.

A form says once how a canonical row is written; `macpo convert` and `macpo push` both write by it.
A published form is a configuration of its own in every tree that macpo publishes. Several trainers
may share one. A snippet is a Jinja template, and sees:

    place    the dataset's id on the Hub, or a folder
    name     the plain configuration, such as round_2_student; of a converted folder its name
    config   the configuration in the form that this trainer reads; None for a converted folder
    tag      the tag that pins the round; None for a folder
    file     the data file of a converted folder
    beta, gamma    of DPO with its SFT term, as in the recipe
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import polars as pl

from macpo_data.forms.shape import Shape
from macpo_data.schema import CALL_KEYS, MESSAGES, PUBLISHED, PUBLISHED_SFT, Table
from macpo_data.sources.ingest.canonical import TRAINABLE, Reason, Refusal, Row, as_json, text
from macpo_data.sources.ingest.json_text import Record

Answer = tuple[bool, str]  # whether the trainer reads the dataset, and how, or why not
# Of each learner's dataset of a round, by name: its configurations, each with its files.
Tree = Mapping[str, Mapping[str, list[str]]]
# What a trainer can say that hands messages as they are to a chat template.
TEMPLATED = frozenset({Reason.TOOL_CALL, Reason.TOOL_RESULT, Reason.THOUGHT})
ROLES = frozenset({"system", "user", "assistant", "tool"})
ANY_ROLE = ROLES | {"developer"}
SEVERAL = frozenset({Reason.SEVERAL_MESSAGES})
TOOLS = frozenset({Reason.TOOLS})
CALLS = frozenset(CALL_KEYS)  # of messages
COMMAND = "command.txt"  # where a snippet goes that is no file of the trainer
DATA_FILE = "train.jsonl"  # of a converted folder


@dataclass(frozen=True, kw_only=True)
class Form:
    """Rows in the shape that a trainer wants."""

    record: Callable[[Row], Record]  # a row as it is written; a Refusal where it cannot be
    joins: bool = False  # prompt and answer are one list, and nothing says where the answer begins


@dataclass(frozen=True, kw_only=True)
class Published(Form):
    """A form in which every dataset is published, as a configuration of its own."""

    suffix: str  # of the configuration's name
    table: Table
    words: str  # on the card, after the configuration's name

    def rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows as they are published; columns that the form does not write stay as they are.

        Args:
            frame: of PUBLISHED, or of PUBLISHED_SFT with `whole`: whether the row is the last turn
                of a conversation all of whose turns may be learned.
        """
        if self.joins:
            frame = frame.filter("whole")
        answer = "chosen" if "chosen" in frame.columns else "completion"
        names = [name for name in ("prompt", answer, "rejected") if name in frame.columns]
        records = [self.record(Row(*row)) for row in frame.select(names).iter_rows()]
        written = [name for name in self.table if records and name in records[0]]
        columns = {name: [record[name] for record in records] for name in written}
        if not records:
            return pl.DataFrame(schema=self.table)
        return frame.with_columns(
            pl.Series(name, values, dtype=self.table[name]) for name, values in columns.items()
        )


@dataclass(frozen=True)
class AsText:
    """How a trainer takes text that is rendered already, without a template of its own."""

    form: Form
    snippet: str  # as that of a Use


@dataclass(frozen=True)
class Use:
    """How a trainer uses data of one kind."""

    form: Form  # what is written for it; published where it is a Published
    snippet: str  # what a person types or writes into a file
    reads: Callable[[Shape], Answer]  # what it makes of any dataset
    takes: frozenset[Reason] = frozenset()  # what it can say of a row beside plain text
    keys: frozenset[str] | None = frozenset()  # of messages that it reads as well; None: all
    roles: frozenset[str] = ROLES  # of messages
    answer_roles: frozenset[str] = ROLES  # of an answer's messages
    converted: Form | None = None  # what `macpo convert` writes, where it is not the form above
    snippet_file: str = "config.yaml"  # where `macpo convert` puts the snippet
    calls_whole: bool = True  # whether all of a call is read, or its name and arguments alone
    as_text: AsText | None = None  # how it takes rendered text as it is; None where it does not
    # Files beside a converted folder's data, from its name: path -> content.
    beside: Callable[[str], dict[str, bytes]] | None = None


@dataclass(frozen=True)
class Trainer:
    """One that learns from what macpo publishes, or converts."""

    name: str  # as `macpo check --for` knows it
    title: str  # over its snippet on the card
    pairs: Use
    fine_tuning: Use | None = None  # None where nobody looked how it does that
    # Files that it wants at the top of the tree, from all that is there and the dataset's id.
    files: Callable[[Tree, str | None], dict[str, bytes]] | None = None

    @property
    def reads_published(self) -> bool:
        """Whether it reads what macpo publishes; others read what macpo converts for them."""
        return isinstance(self.pairs.form, Published)


# How a trainer uses data that hands whole messages and tools to the chat template.
templated_use = partial(Use, takes=TRAINABLE, keys=None, roles=ANY_ROLE, snippet_file=COMMAND)


def with_tools(record: Record, row: Row) -> Record:
    """The record with the row's tools, where it has any, as the JSON text that trainers take.

    As values, their schemas would be joined over all rows, with nulls for what a tool has not.
    """
    return {**record, "tools": as_json(row.tools)} if row.tools else record


PLAIN = Published(
    record=lambda row: with_tools(
        {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}, row
    ),
    suffix="",
    table=PUBLISHED,
    words="`prompt`, `chosen`, `rejected` as message lists, with where each side came from and how "
    "it scored; `chosen_text` and `rejected_text` are the same as text.",
)
FULL = Published(
    record=lambda row: {
        "chosen": [*row.prompt, *(row.chosen or [])],
        "rejected": [*row.prompt, *(row.rejected or [])],
    },
    suffix="_full",
    # No prompt to double it.
    table={"chosen": MESSAGES, "rejected": MESSAGES, "prompt_id": pl.String()},
    words="the prompt inside both sides; on the branch `full` it is the default.",
)
TURNS = Published(
    record=lambda row: with_tools({"prompt": row.prompt, "completion": row.chosen}, row),
    suffix="",
    table=PUBLISHED_SFT,
    words="`prompt` and `completion` as message lists, a row for each turn, with where the "
    "completion came from.",
)
CONVERSATIONS = Published(
    record=lambda row: with_tools({"messages": [*row.prompt, *(row.chosen or [])]}, row),
    joins=True,
    suffix="_messages",
    table={"messages": MESSAGES},
    words="whole conversations as `messages`, and nothing else.",
)


def _one_text(row: Row) -> str | None:
    """The prompt of a row whose text is rendered."""
    if len(row.prompt) > 1:
        words = "the prompt is several messages, and so no text that is rendered already"
        raise Refusal(Reason.SEVERAL_MESSAGES, words)
    return text(row.prompt)


# Rendered text: a prompt and what follows it, to the letter.
PAIR_OF_TEXTS = Form(
    record=lambda row: {
        "prompt": _one_text(row),
        "chosen": text(row.chosen),
        "rejected": text(row.rejected),
    }
)
TEXT = Form(record=lambda row: {"prompt": _one_text(row), "completion": text(row.chosen)})

WANTS_FULL = "wants all of the prompt inside both sides, as messages"
RENDERED_AGAIN = "the text is rendered already, and would be rendered again"
WANTS_CONVERSATIONS = "wants whole conversations, as `messages`"
