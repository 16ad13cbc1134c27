"""One line of what preflight finds, and the checks that find it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Health:
    """One line of the report."""

    status: Literal["ok", "warning", "problem"]
    what: str
    detail: str
    mend: str = ""  # the command, or what to do


Check = Callable[[], Iterable[Health]]
Checks = dict[str, Check]  # each once, by what it looks at
