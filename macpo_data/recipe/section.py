"""The base class of all recipe sections: validation, and which fields enter a fingerprint.

A field marked KNOB changes how fast or where a thing is made, not what it is; every other field is
identity and enters the fingerprints of the steps that read it. One marked LATER does so where it
is not at its default, so that results from before it existed keep their names.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

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
