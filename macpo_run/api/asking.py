"""What the functions for Python share: settings, quiet work, and what is missing as an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from macpo_data.errors import MacpoError
from macpo_data.models.worker import Progress, Report
from macpo_data.outside import parse_yaml
from macpo_run.preflight.finding import Checks
from macpo_run.preflight.needs import look

Settings = Mapping[str, object]


def as_sets(settings: Settings | None) -> list[str]:
    """Settings as the command line takes them.

    >>> as_sets({"engine.name": "fake", "dpo.beta": 0.2, "select.pool": None})
    ['engine.name=fake', 'dpo.beta=0.2', 'select.pool=null']
    """

    def value(each: object) -> str:
        # A word of YAML's own, such as no or null, would be read back as that.
        is_word = isinstance(each, str) and each.isidentifier() and parse_yaml(each) == each
        return str(each) if is_word else json.dumps(each)

    return [f"{key}={value(each)}" for key, each in (settings or {}).items()]


def progress_of(quiet: bool) -> Progress:
    """Bars on stderr, or nothing."""
    from macpo_run.terminal.progress import progress

    return _silent if quiet else progress


def speaker(quiet: bool) -> Callable[[str], None]:
    """What prints a line on stderr, or drops it."""
    return (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr))


@contextmanager
def _silent(title: str) -> Iterator[Report]:
    yield lambda done, total, note: None


def require(checks: Checks) -> None:
    """Look at everything that is needed.

    Raises:
        MacpoError: with all that is missing.
    """
    from macpo_run.commands.before import in_words

    problems = [in_words(each) for each in look(checks) if each.status == "problem"]
    if problems:
        raise MacpoError("; ".join(dict.fromkeys(problems)))
