"""Prints single lines: messages, side notes, and the next command."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

from macpo_train.ranks import is_first


def say(line: str) -> None:
    """Print a line of a command's result."""
    if is_first():  # of several processes, one speaks
        print(line)


def say_sign(line: str) -> None:
    """Print a sign of failure: in a terminal its words stay whole, in a pipe it is one line."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(
            line, width - 2, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    say(f"! {line}")


def say_aside(line: str) -> None:
    """Print a line that is no part of the result, on stderr."""
    print(line, file=sys.stderr)


def say_next(command: str) -> None:
    """Print the command that goes on from here, so that it can be copied whole."""
    say(f"next: {command.replace('macpo', program(), 1)}")


def program() -> str:
    """How to call this program from here: by its path where a shell would not find its name."""
    own = Path(sys.argv[0])
    by_name = own.name != "macpo" or shutil.which("macpo")
    return "macpo" if by_name else shlex.quote(os.path.relpath(own))
