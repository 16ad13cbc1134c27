"""Errors that a user can fix. `cli.main` prints each as one line; all others are bugs."""

from __future__ import annotations

import os
import re


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


class StoreError(MacpoError):
    """A result on disk is damaged, locked by another process, or the disk refused a write."""


class HubError(MacpoError):
    """Something cannot be published to, or fetched from, the Hub or a folder in its form."""


def hidden_os_error(error: BaseException, path: str | None = None) -> OSError | None:
    """The system's error, such as a full disk, that a library hid in a text; None without one."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), path) if number else None


def first_line(error: BaseException) -> str:
    """What a library's error says first; the rest is for its developers."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


def plain(text: str) -> str:
    """Text without the control characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
