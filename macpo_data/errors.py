"""Errors that a user can fix. `cli.main` prints each as one line; all others are bugs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

_opened: dict[str, Any] = {"options": "", "sets": ()}  # of the command line, for the open run


class MacpoError(Exception):
    """A mistake or a circumstance outside the program. The message ends in what to do next."""


class Interrupted(MacpoError):
    """Somebody pressed Ctrl-C."""


class RecipeError(MacpoError):
    """The recipe cannot be used. Lists every mistake at once, each with its dotted path."""

    def __init__(self, source: str, problems: list[str]) -> None:
        """Keep the problems apart, so that a test or a page can show them one by one."""
        self.source = source
        self.problems = [" ".join(p.split()) for p in problems]  # a key may hold a line break
        super().__init__(f"recipe {source}: " + "; ".join(self.problems))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[str, list[str]]]:
        """Two arguments, so pickling across a process needs to be told of both."""
        return type(self), (self.source, self.problems)


class DataError(MacpoError):
    """A dataset is missing, unreadable, or holds too few usable rows."""


class ModelError(MacpoError):
    """A base model, adapter or chat template is missing or does not fit."""


class TemplateRefusal(ModelError):
    """A chat template refuses a role."""

    def __init__(self, message: str, role: str, reason: str) -> None:
        """The message has row and text as well, which differ between rows of one role."""
        super().__init__(message)
        self.role, self.reason = role, reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Three arguments, so pickling across a process needs to be told of all."""
        return type(self), (str(self), self.role, self.reason)


class StoreError(MacpoError):
    """A result on disk is damaged, locked by another process, or the disk refused a write."""


class HubError(MacpoError):
    """Something cannot be published to, or fetched from, the Hub or a folder in its form."""


def hidden_os_error(error: BaseException, path: str | None = None) -> OSError | None:
    """The system's error, such as a full disk, that a library hid in a text; None without one.

    >>> hidden_os_error(FileNotFoundError("No such file or directory (os error 2): a.parquet"))
    FileNotFoundError(2, 'No such file or directory')
    """
    hidden = re.search(r"os error (\d+)\)?(?:: (.+))?", str(error))
    if hidden is None:
        return None
    return OSError(int(hidden[1]), os.strerror(int(hidden[1])), path or hidden[2])


def first_line(error: BaseException) -> str:
    """What a library's error says first; the rest is for its developers."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


def plain(text: str) -> str:
    """Text without the control characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def lead_to_run(options: str, sets: Sequence[str] = ()) -> None:
    """Remember the options of the run that is open, for every command that a message names.

    Args:
        options: as they were given, with a blank before them if there are any.
        sets: those of them that were laid over the recipe.
    """
    _opened.update(options=options, sets=tuple(sets))


def as_set() -> str:
    """Where something is missing: that what --set changed has results of its own; else nothing.

    >>> as_set()
    ''
    """
    sets = ", ".join(_opened["sets"])
    return f"; a recipe that --set changed ({sets}) has results of its own" if sets else ""


def of_run(command: str) -> str:
    """A command on the run that is open, so that it can be copied whole.

    >>> of_run("status")
    'macpo status'
    """
    return f"macpo {command}{_opened['options']}"


def did_you_mean(written: object, names: Iterable[object], likeness: float = 0.6) -> str:
    """The nearest of some names, as a question in brackets; empty where none is so much alike.

    >>> did_you_mean("studnet", ["teacher", "student"])
    ' (did you mean student?)'
    """
    from difflib import get_close_matches

    near = get_close_matches(str(written), sorted({str(name) for name in names}), 1, likeness)
    return f" (did you mean {near[0]}?)" if near else ""
