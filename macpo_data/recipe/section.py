"""The base class of all recipe sections: validation, and which fields enter a fingerprint; paths.

A field marked KNOB changes how fast or where a thing is made, not what it is; every other field is
identity and enters the fingerprints of the steps that read it. One marked LATER does so where it
is not at its default, so that results from before it existed keep their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from json.encoder import encode_basestring
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

KNOB, LATER = "knob", "later"
# Names become paths and dataset config names, so nothing but plain characters.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]  # strict: yes is no number


def digest(value: Any) -> str:
    """Name a JSON value: the first 8 hex digits of the sha256 of its canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def digest_each(first: int, texts: Iterable[str]) -> Iterator[str]:
    """`digest` of a number and each of some texts.

    >>> list(digest_each(7, ["a"])) == [digest([7, "a"])]
    True
    """
    before = hashlib.sha256(f"[{first},".encode())
    for text in texts:
        content = before.copy()
        content.update(f"{encode_basestring(text)}]".encode())
        yield content.hexdigest()[:8]


def digest_rows(rows: Iterable[Any]) -> str:
    """`digest` of a list of JSON values, of which a thousand at a time are in memory.

    >>> digest_rows(iter([(1, "a"), (2, "b")])) == digest([(1, "a"), (2, "b")])
    True
    """
    content, rest, between = hashlib.sha256(b"["), iter(rows), ""
    while some := list(islice(rest, 1000)):
        text = json.dumps(some, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        content.update(f"{between}{text[1:-1]}".encode())
        between = ","
    content.update(b"]")
    return content.hexdigest()[:8]


class Section(BaseModel):
    """A part of the recipe: frozen, and a key it does not know is a mistake.

    The text under a field is what the key means. People read it in `macpo init --full` and, while
    they write, in an editor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that decide a result, without the knobs, as JSON values."""
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            unset = LATER in field.metadata and value == field.default
            if KNOB in field.metadata or unset:
                del values[name]
            elif isinstance(value, Section):
                values[name] = value.identity()
            elif isinstance(value, dict):
                values[name] = {
                    k: v.identity() if isinstance(v, Section) else v for k, v in value.items()
                }
        return values


class OpenedPath(str):
    """A path that can be opened from the working directory; it remembers how it was written.

    Results take their names from what was written, so that they do not depend on where a recipe
    lies.

    Example:
        >>> path = OpenedPath("project/pairs.jsonl", "pairs.jsonl")
        >>> str(path), written(path)
        ('project/pairs.jsonl', 'pairs.jsonl')
    """

    written: str

    def __new__(cls, opened: str, as_written: str | None = None) -> OpenedPath:
        """`opened` from the working directory; `as_written` in the recipe."""
        path = super().__new__(cls, opened)
        path.written = opened if as_written is None else as_written
        return path


def written(value: Any) -> Any:
    """A path as its recipe writes it; any other value as it is."""
    return value.written if isinstance(value, OpenedPath) else value


def _keep(value: Any, check: ValidatorFunctionWrapHandler) -> str:
    checked: str = check(value)
    return value if isinstance(value, OpenedPath) else checked


# A file, a folder, or an id on the Hub.
Place = Annotated[str, WrapValidator(_keep), PlainSerializer(written, return_type=str)]
