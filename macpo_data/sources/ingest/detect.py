"""The form of a dataset, from a batch of its records, and which columns hold what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from macpo_data.errors import DataError, did_you_mean
from macpo_data.recipe.data import Columns
from macpo_data.sources.ingest import hints, marks
from macpo_data.sources.ingest.json_text import Record
from macpo_data.sources.ingest.messages import READABLE, Kind, is_dialogue, kind_of


class Form(StrEnum):
    """The forms of datasets, in the words in which a person is told."""

    EXPLICIT = "preference pairs: a prompt, chosen and rejected"
    IMPLICIT = "preference pairs: whole conversations in chosen and rejected"
    ALPACA = "preference pairs of the Alpaca form: instruction, input, chosen, rejected"
    TOLD_TWICE = "a conversation, and another last answer that is rejected"
    OPENAI = "OpenAI's preference form: input.messages, preferred_output, non_preferred_output"
    HH = "HH-RLHF's text: Human: ... Assistant: ... in chosen and rejected"
    WHOLE_TEXT = "chosen and rejected as whole texts, without a column of prompts"
    SCORED = "several scored answers to each prompt"
    RANKED = "NeMo-RL's form: context, and completions with their ranks"
    LABELLED = "two answers, and a label that says which is better"
    UNPAIRED = "unpaired preference (an answer, and a label whether it is good)"
    STEPWISE = "stepwise supervision (steps of an answer, and a label for each)"
    TOKENISED = "token ids"
    FINE_TUNING = "data for fine-tuning: answers without a rejected side"
    PROMPTS = "prompts alone, without answers"


# The columns of each known layout. What is named by a person takes the place of what stands here.
_PAIRS: tuple[tuple[Form, dict[str, str]], ...] = (
    (Form.ALPACA, {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}),
    (Form.EXPLICIT, {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    *(
        (Form.EXPLICIT, {"prompt": prompt, "chosen": "chosen", "rejected": "rejected"})
        for prompt in ("conversations", "messages", "question", "input")
    ),
    (Form.ALPACA, {"prompt": "instruction", "chosen": "chosen_response",
                   "rejected": "rejected_response"}),
    (Form.EXPLICIT, {"prompt": "query", "chosen": "response", "rejected": "rejected_response"}),
    (Form.IMPLICIT, {"chosen": "messages", "rejected": "rejected_messages"}),
    (Form.TOLD_TWICE, {"chosen": "messages", "rejected": "rejected_response"}),
    (Form.OPENAI, {"prompt": "input", "chosen": "preferred_output",
                   "rejected": "non_preferred_output"}),
    (Form.IMPLICIT, {"chosen": "chosen", "rejected": "rejected"}),
)  # fmt: skip
_FINE_TUNING: tuple[dict[str, str], ...] = (
    {"prompt": "prompt", "chosen": "completion"},
    {"prompt": "prompt", "chosen": "response"},
    {"prompt": "instruction", "chosen": "output"},
    {"prompt": "query", "chosen": "response"},
    {"prompt": "question", "chosen": "answer"},
    {"chosen": "messages"},
    {"chosen": "conversations"},
)
_CONVERSATIONS = ("messages", "conversations")
_PROMPTS = ("prompt", "query", "instruction", "question")
_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
_LABELS = ("label", "kto_tag", "labels")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
FORMS_WITH_SIDES = frozenset(
    {Form.EXPLICIT, Form.IMPLICIT, Form.ALPACA, Form.TOLD_TWICE, Form.OPENAI, Form.HH,
     Form.WHOLE_TEXT, Form.SCORED, Form.RANKED, Form.LABELLED}
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Which form a dataset has, and which columns hold what; None where it has no such column."""

    form: Form
    kinds: Mapping[str, Kind]  # of every column that is there
    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    tools: str | None = None
    input: str | None = None  # Alpaca's second half of the prompt
    history: str | None = None  # pairs of earlier turns
    first: str | None = None
    second: str | None = None
    label: str | None = None
    answers: str | None = None
    score: str | None = None  # with a minus before it, less is better
    strip: bool = True  # contents without white space around them

    def kind(self, column: str | None) -> Kind:
        """What a column holds."""
        return self.kinds.get(column or "", Kind.MISSING)

    @property
    def read(self) -> set[str]:
        """The columns that the reader of this form looks at."""
        named = (self.prompt, self.chosen, self.rejected, self.system, self.tools, self.input,
                 self.history, self.first, self.second, self.label, self.answers,
                 self.score and self.score.removeprefix("-"))  # fmt: skip
        return {name for name in named if name} | {name for name in MEDIA if name in self.kinds}

    @property
    def columns(self) -> Columns:
        """The columns of prompts and sides, as a recipe names them."""
        return Columns(prompt=self.prompt or "prompt", chosen=self.chosen, rejected=self.rejected)


def detect(
    sample: Sequence[Record],
    columns: Columns,
    place: str,
    *,
    rendered: bool = False,
    form: Form | None = None,
    option: hints.Option = hints.Option.COMMAND,
) -> Layout:
    """Find the form of a dataset.

    Args:
        sample: its first records.
        columns: what a person named; the others are found.
        place: for errors.
        rendered: whether its text is to be taken as it is.
        form: of whole texts or dialogues, where it is known.
        option: how a person names columns, for the hints.

    Raises:
        DataError: it is of no form that holds preferences or prompts, with how to name columns.
    """
    kinds = {name: kind_of(record.get(name) for record in sample) for name in _names(sample)}
    fields = type(columns).model_fields.items()
    named = {k: value for k, f in fields if (value := getattr(columns, k)) != f.default}
    if not kinds:
        raise DataError(f"cannot read {place}: it holds no row")
    # A score may stand inside the answers.
    wanted = [str(v) for k, v in named.items() if v is not None and k != "score"]
    if missing := [name for name in wanted if name not in kinds]:
        raise DataError(
            f"{place}: no column {', '.join(missing)}{did_you_mean(missing[0], kinds)} (it has "
            f"{', '.join(kinds)}); {hints.naming(kinds, option)}"
        )
    more = _beside(kinds, named)
    if named.get("label") or named.get("first") or named.get("second"):
        wanted = [k for k in ("first", "second", "label") if not named.get(k)]
        if wanted:
            raise DataError(f"{place}: of two answers and a label, name {', '.join(wanted)} too")
        return Layout(Form.LABELLED, kinds, prompt=_prompt(kinds, named), **more)
    if named.get("answers") or named.get("score"):
        wanted = [k for k in ("answers", "score") if not named.get(k)]
        if wanted:
            raise DataError(f"{place}: of several scored answers, name {', '.join(wanted)} too")
        return Layout(Form.SCORED, kinds, prompt=_prompt(kinds, named), **more)
    _refuse_other_kinds(sample, kinds, place)
    if layout := _pairs(kinds, named, more):
        return _whole_texts(layout, sample, place, rendered, form)
    return _without_sides(sample, kinds, named, more, place, option)


def _names(sample: Sequence[Record]) -> dict[str, None]:
    """The columns of any record, in order."""
    return {name: None for record in sample for name in record}


def _beside(kinds: Mapping[str, Kind], named: Mapping[str, Any]) -> dict[str, Any]:
    """The columns beside prompt and sides: those that are named, else those of the usual names."""
    usual = {"system": _SYSTEM, "tools": _TOOLS, "history": ("history",)}
    # A column may come late: one of the usual name is looked for in every record.
    detected = {
        what: next((name for name in names if name in kinds), names[0])
        for what, names in usual.items()
    }
    given = {k: v for k, v in named.items() if k not in ("prompt", "chosen", "rejected")}
    return detected | given


def _prompt(kinds: Mapping[str, Kind], named: Mapping[str, Any]) -> str | None:
    usual = (*_PROMPTS, "messages", "conversations", "input")
    return named.get("prompt") or next((name for name in usual if name in kinds), None)


def _pairs(
    kinds: Mapping[str, Kind], named: Mapping[str, Any], more: Mapping[str, Any]
) -> Layout | None:
    """The first layout of two sides whose columns are all there."""
    if named.get("rejected", "") is None:
        return None
    if {"context", "completions"} <= kinds.keys() and not named:
        names = {"prompt": "context", "answers": "completions", "score": "-rank"}
        return Layout(Form.RANKED, kinds, **(dict(more) | names))
    for form, usual in _PAIRS:
        wanted = usual | {k: v for k, v in named.items() if k in ("prompt", "chosen", "rejected")}
        if "prompt" in named and "prompt" not in usual:
            continue
        if form is Form.ALPACA and wanted["prompt"] != "instruction":
            continue
        if form is Form.ALPACA and "prompt" in kinds and "prompt" not in named:
            continue
        if form is Form.OPENAI and kinds.get(wanted["prompt"]) in READABLE:
            continue
        if all(name in kinds for name in wanted.values()):
            inputs = "input" if form is Form.ALPACA else None
            return Layout(form, kinds, **wanted, input=inputs, **more)
    return None


def _whole_texts(
    layout: Layout,
    sample: Sequence[Record],
    place: str,
    rendered: bool,
    form: Form | None,
) -> Layout:
    """Of two sides without a prompt that are text: dialogues, or whole texts."""
    sides = [str(layout.chosen), str(layout.rejected)]
    if layout.form is not Form.IMPLICIT or Kind.TEXT not in {layout.kind(s) for s in sides}:
        return layout
    texts = [record[s] for record in sample for s in sides if isinstance(record.get(s), str)]
    if form is Form.HH or 2 * sum(map(is_dialogue, texts)) > len(texts):
        return replace(layout, form=Form.HH)
    if rendered:
        return replace(layout, form=Form.WHOLE_TEXT)
    marked = [name for text in texts[:100] if (name := marks.template(text))]
    if 2 * len(marked) > len(texts[:100]):
        raise DataError(
            f"{place}: {Form.WHOLE_TEXT}, and the text is rendered already: it holds the marks of "
            f"{marked[0]}; --set chat_template=none takes it as it is"
        )
    raise DataError(
        f"{place}: {Form.WHOLE_TEXT}; TRL and OpenRLHF take the start that both have in common for "
        "the prompt, macpo does not guess where it ends: add a column of prompts"
    )


def _refuse_other_kinds(sample: Sequence[Record], kinds: Mapping[str, Kind], place: str) -> None:
    """Refuse what is no preference data, and might be taken for such."""
    other: Form | None = None
    answered = {"completion", "response", "messages", "conversations", "output"} & kinds.keys()
    label = next((name for name in _LABELS if name in kinds), None)
    if {"completions", "labels"} <= kinds.keys():
        other = Form.STEPWISE
    elif answered and label and not {"chosen", "rejected"} & kinds.keys():
        values = [record[label] for record in sample if record.get(label) is not None]
        if values and all(v in (0, 1, "true", "false", "True", "False") for v in values):
            other = Form.UNPAIRED
    elif "input_ids" in kinds:
        other = Form.TOKENISED
    if other is not None:
        raise DataError(
            f"{place} is {other} (columns {', '.join(kinds)}): there are no pairs of a chosen and "
            "a rejected answer in it; bring pairs, or make them of the good and the bad answers "
            "to one prompt"
        )


def _without_sides(
    sample: Sequence[Record],
    kinds: Mapping[str, Kind],
    named: Mapping[str, Any],
    more: Mapping[str, Any],
    place: str,
    option: hints.Option,
) -> Layout:
    """Data for fine-tuning, prompts alone, or nothing that can be read without more names."""
    if len({"chosen", "rejected"} & kinds.keys()) == 1 and not named:
        raise _missing(kinds, named, place, option)
    if hint := hints.several(sample, kinds, option):
        raise DataError(f"{place}: {hint}")
    sides = {k: v for k, v in named.items() if k in ("prompt", "chosen", "rejected")}
    for usual in _FINE_TUNING:
        wanted = usual | {k: v for k, v in sides.items() if v is not None}
        wanted.pop("rejected", None)
        if "prompt" in usual and "prompt" not in sides and wanted["chosen"] in _CONVERSATIONS:
            continue  # a conversation brings its prompt with it
        if all(name in kinds for name in wanted.values()) and sides.get("chosen", "") is not None:
            inputs = "input" if wanted.get("prompt") == "instruction" else None
            return Layout(Form.FINE_TUNING, kinds, **wanted, input=inputs, **more)
    prompt = named.get("prompt") or next((name for name in _PROMPTS if name in kinds), None)
    answered = named.get("chosen") or named.get("rejected")
    guessed = "prompt" not in named and hints.answer_like(kinds, prompt)
    if prompt in kinds and not answered and not guessed:
        return Layout(Form.PROMPTS, kinds, prompt=prompt, **more)
    raise _missing(kinds, named, place, option)


def _missing(
    kinds: Mapping[str, Kind], named: Mapping[str, Any], place: str, option: hints.Option
) -> DataError:
    wanted = [
        name for name in ("prompt", "chosen", "rejected") if named.get(name, name) not in kinds
    ]
    return DataError(
        f"{place}: no column {', '.join(wanted)} (it has {', '.join(kinds)}); "
        f"{hints.naming(kinds, option)}"
    )
