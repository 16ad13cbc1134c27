"""How a person names the columns of a dataset: the option itself, and hints that can be copied."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from enum import Enum

from macpo_data.errors import MacpoError, did_you_mean
from macpo_data.recipe.data import Columns
from macpo_data.sources.ingest.json_text import Record
from macpo_data.sources.ingest.messages import READABLE, Kind


class Option(Enum):
    """Where columns are named."""

    COMMAND = "--columns "
    RECIPE = "data.columns: "


# Names that people give to what is a prompt, a better and a worse answer, in order of likelihood.
_PROMPT = ("prompt", "question", "instruction", "query", "input", "context", "conversations",
           "messages", "post", "problem", "text")  # fmt: skip
_BETTER = ("chosen", "response_j", "better", "preferred", "winner", "good", "accepted", "positive",
           "response_w", "y_w", "win")  # fmt: skip
_WORSE = ("rejected", "response_k", "worse", "dispreferred", "loser", "bad", "declined", "negative",
          "response_l", "y_l", "lose")  # fmt: skip
_ANSWERS = ("completions", "responses", "answers", "generations", "candidates", "outputs")
_SCORES = ("score", "overall_score", "rating", "reward", "rank", "scores", "ratings", "rewards",
           "ranks")  # fmt: skip
_VERDICTS = re.compile(r"label|winner|preferred|preference|better|choice|verdict|chosen")
_TWO = (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B"))


def as_settings(text: str | None) -> list[str]:
    """What `--columns` says, as settings that lay over others.

    Raises:
        MacpoError: a part is no NAME=COLUMN, or has a name that nothing reads.

    >>> as_settings("prompt=question,chosen=response_j")
    ['columns.prompt="question"', 'columns.chosen="response_j"']
    """
    settings = []
    for part in (text or "").split(",") if text is not None else ():
        name, equals, column = (word.strip() for word in part.partition("="))
        if not equals or not column or name not in Columns.model_fields:
            raise MacpoError(
                f"--columns: {part!r} names no column"
                f"{did_you_mean(name, Columns.model_fields) if equals else ''}; write it as "
                "--columns prompt=question,chosen=best,rejected=worst, of the names "
                f"{', '.join(Columns.model_fields)}"
            )
        settings.append(f"columns.{name}={column if column == 'null' else json.dumps(column)}")
    return settings


def option_text(names: Mapping[str, str], option: Option) -> str:
    """The option that names these columns.

    >>> option_text({"prompt": "q", "chosen": "a"}, Option.COMMAND)
    '--columns prompt=q,chosen=a'
    """
    if option is Option.RECIPE:
        inside = ", ".join(f"{name}: {column}" for name, column in names.items())
        return f"{option.value}{{{inside}}}"
    listed = ",".join(f"{name}={column}" for name, column in names.items())
    text = f"{option.value}{listed}"
    return f"--columns '{listed}'" if re.search(r"[^\w=,.\-]", listed) else text


def naming(kinds: Mapping[str, Kind], option: Option) -> str:
    """How to name the three columns, with the likeliest of those that are there."""
    free = [name for name, kind in kinds.items() if kind in READABLE]
    if len(free) < 2:
        return "a preference dataset has columns of prompts, chosen and rejected answers"
    names: dict[str, str] = {}
    for name, usual in (("prompt", _PROMPT), ("chosen", _BETTER), ("rejected", _WORSE)):
        if likely := _likely(usual, free):
            names[name] = likely
            free.remove(likely)
    for name in ("prompt", "chosen", "rejected"):
        if name not in names and free:
            names[name] = free.pop(0)
    ordered = {name: names[name] for name in Columns.model_fields if name in names}
    return f"name them, such as with {option_text(ordered, option)}"


def several(sample: Sequence[Record], kinds: Mapping[str, Kind], option: Option) -> str | None:
    """What to name where records hold several answers and scores, or two answers and a label."""
    prompt = _likely(_PROMPT, [name for name in kinds if not name.startswith("conversation_")])
    asked = {"prompt": prompt} if prompt else {}  # conversations bring it with them
    for answers in _ANSWERS:
        lists = [record[answers] for record in sample if isinstance(record.get(answers), list)]
        if lists and max(map(len, lists)) > 1:
            inside = {k for each in lists for a in each if isinstance(a, dict) for k in a}
            score = next((name for name in _SCORES if name in inside or name in kinds), None)
            sign = "-" if score in ("rank", "ranks") else ""
            named = {**asked, "answers": answers, "score": f"{sign}{score or 'SCORE'}"}
            return (
                f"several answers to each prompt in column {answers}; the best and the worst by a "
                f"score are taken once it is named: {option_text(named, option)}"
            )
    for one, two in _TWO:
        for first in kinds:
            second = f"{first[: -len(one)]}{two}"
            if not first.endswith(one) or second not in kinds or kinds[first] not in READABLE:
                continue
            verdicts = [n for n in kinds if _VERDICTS.search(n) and n not in (first, second)]
            if not verdicts:
                continue
            named = {**asked, "first": first, "second": second, "label": verdicts[0]}
            others = f" (or {', '.join(verdicts[1:])})" if verdicts[1:] else ""
            return (
                f"two answers, {first} and {second}, and a label that says which is better; name "
                f"them: {option_text(named, option)}{others}"
            )
    return None


def answer_like(kinds: Mapping[str, Kind], prompt: str | None) -> list[str]:
    """Columns that look like answers, so that a dataset may be more than prompts alone."""
    words = re.compile(r"^(response|answer|output|completion|reply)s?([_-]?\w)?$")
    return [n for n, kind in kinds.items() if kind in READABLE and n != prompt and words.match(n)]


def _likely(names: Collection[str], there: Sequence[str]) -> str | None:
    exact = next((name for name in names if name in there), None)
    return exact or next((n for n in there if any(name in n.lower() for name in names)), None)
