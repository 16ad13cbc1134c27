"""Jinja templates of the cards; text from models and sources is never run as a template."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def fill(file: str, **values: Any) -> str:
    """The text of a file such as card.md.jinja with these values."""
    return _environment().get_template(file).render(values)


def fill_text(template: str, **values: Any) -> str:
    """A template that is no file, such as a trainer's snippet, with these values."""
    return _environment().from_string(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown, not HTML: nothing is escaped but the columns of tables.
    environment = Environment(
        loader=PackageLoader("macpo_data.hub", "."),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": _cell,
        "counts": _counts,
        "settings": _settings,
        "thousands": _thousands,
    }
    return environment


def _cell(value: object) -> str:
    """A value inside a table, where a bar ends a cell and a line break the row."""
    return " ".join(str(value).split("\n")).replace("|", "\\|")


def _thousands(count: int) -> str:
    return f"{count:,}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in counts.items()) or "none"


def _settings(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{k} {v}" for k, v in (values or {}).items()) or "none; a person wrote it"
