"""Looks at any preference dataset as each trainer would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from macpo_data.errors import MacpoError
from macpo_data.forms import check as checks
from macpo_data.forms.row_findings import Finding
from macpo_data.models.base import Base, load_chat
from macpo_data.recipe.agents import takes_text_as_it_is
from macpo_data.recipe.recipe import TrainSettings
from macpo_data.sources import overlap
from macpo_data.sources.ingest.canonical import TRAINABLE
from macpo_data.sources.ingest.door import Rows, open_rows
from macpo_data.sources.ingest.splits import Dataset, Source, every_split


@dataclass(frozen=True)
class Look:
    """What was seen of a dataset."""

    rows: Rows  # read to their end: the account is whole
    findings: list[Finding]
    readings: list[checks.Reading]
    fit: bool  # no row is wrong, and the trainer that counts can read it


def check(
    of: Dataset | Source,
    settings: TrainSettings,
    trainer: str | None = None,
    tests: Sequence[str] = (),
    tokenizer: str | None = None,
    max_length: int = 1024,
) -> Look:
    """Look at a dataset as each trainer would.

    Args:
        of: which dataset.
        settings: of the training.
        trainer: the one that must be able to read it; None for any.
        tests: test sets whose prompts must not be in it.
        tokenizer: a model whose tokenizer counts the lengths.
        max_length: tokens of prompt and answer.

    Raises:
        MacpoError: it cannot be read, or a test set has no prompts.
    """
    as_it_is = takes_text_as_it_is(settings.chat_template)
    rows = open_rows(of, settings.columns, takes=TRAINABLE, rendered=as_it_is)
    kept_out = []
    for path in tests:
        prompts = overlap.texts(every_split(Dataset(path)))
        if prompts is None:
            raise MacpoError(f"{path} has no column of prompts; name another test set")
        kept_out.append(prompts)
    chat = load_chat(Base(tokenizer, None), settings.chat_template) if tokenizer else None
    findings = checks.findings(rows, chat=chat, max_length=max_length, tests=kept_out)
    readings = checks.readings(rows)
    return Look(rows, findings, readings, checks.verdict(findings, readings, trainer))
