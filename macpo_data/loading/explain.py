"""Validation errors of pydantic as messages for people: the dotted key and a suggestion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from macpo_data.errors import did_you_mean

Location = Sequence[int | str]
_PHRASES = {
    "missing": "missing",
    "string_pattern_mismatch": "a name has only letters, digits, _ and -",
}


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Say each mistake in one phrase that begins with its dotted path.

    Args:
        error: what pydantic found wrong.
        model: what the values were to become; its keys and choices are what may have been meant.
    """
    return [phrase for problem in error.errors() for phrase in _phrases(problem, model)]


def _phrases(problem: ErrorDetails, model: type[BaseModel]) -> list[str]:
    loc, kind = problem["loc"], problem["type"]
    if kind == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return [": ".join(filter(None, (_path(loc), line))) for line in message.split("\n")]
    message = _PHRASES.get(kind) or problem["msg"][0].lower() + problem["msg"][1:]
    meant = ""
    if kind == "extra_forbidden":
        message = "unknown key"
        meant = _nearest(loc[-1], (key for s in _sections_at(model, loc) for key in s.model_fields))
    elif kind == "literal_error":
        meant = _nearest(problem["input"], _choices(model, loc))
    elif kind == "union_tag_invalid":
        loc = (*loc, "source")
        message = f"input should be one of {problem['ctx']['expected_tags']}"
        meant = _nearest(problem["ctx"]["tag"], _choices(model, loc))
    return [f"{_path(loc)}: {message}{meant}"]


def _path(loc: Location) -> str:
    """A dotted path as a person writes it."""
    parts = [str(part) for part in loc]
    if parts and parts[0] == "data" and len(parts) > 2:
        del parts[1]  # the kind of data, which is part of pydantic's path and not of the user's
    # Neither do people know of the kinds between which pydantic chose.
    return ".".join(p for p in parts if p != "[key]" and not re.search(r"[\[\]]|constrained", p))


def _nearest(written: Any, choices: Iterable[Any]) -> str:
    """Which of the choices is nearly what was written, as a question; empty for none."""
    return did_you_mean(written, choices, 0.7)


def _sections_at(model: type[BaseModel], loc: Location) -> list[type[BaseModel]]:
    """The sections, of several kinds where data may be any of them, that hold a location's key."""
    sections = [model]
    for part in loc[:-1]:
        inner = [s for section in sections for s in _sections(_annotation(section, part))]
        of_kind = [s for s in sections if part in _literals(_annotation(s, "source"))]
        sections = inner or of_kind or sections  # the name of an agent leads nowhere
    return sections


def _choices(model: type[BaseModel], loc: Location) -> list[Any]:
    """The values between which the key at a location chooses."""
    sections = _sections_at(model, loc)
    return [value for s in sections for value in _literals(_annotation(s, loc[-1]))]


def _annotation(section: type[BaseModel], key: int | str) -> Any:
    field = section.model_fields.get(str(key))
    return field and field.annotation


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """All sections inside a type, such as that of an optional one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


def _literals(annotation: Any) -> list[Any]:
    """All values inside a type that is, or may be, a choice between values."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for inner in get_args(annotation) for value in _literals(inner)]
