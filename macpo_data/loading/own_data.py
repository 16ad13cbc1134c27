"""A shipped recipe with a person's own data in the place of its own."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from macpo_data.loading.load import recipe_text
from macpo_data.loading.write import SCHEMA, SCHEMA_FILE, WIDTH, flow
from macpo_data.outside import compose_yaml

_MEANINGS = {
    "d1": "Initialises the teachers: prompts with chosen and rejected answers.",
    "d2": "The weak-to-strong half: only its prompts are used, in every round; its answers by "
    "eval.ceiling alone.",
    "test": "Held out for evaluation, by prompt: no prompt of it is in D1 or D2, and of several "
    "pairs of one prompt the first is used.",
}


def recipe_on(name: str, data: Mapping[str, Any], run: str, about: Sequence[str]) -> str:
    """A shipped recipe's YAML on other data.

    What it says of labels that are swapped on purpose goes with its own data.

    Args:
        name: of the recipe.
        data: the section, without what is at its default.
        run: folder under runs/.
        about: what its header says, a text for each paragraph.
    """
    _, text = recipe_text(name)
    agents = _children(text, ())["agents"][0]
    for agent in _children(text, ("agents",)) if agents else ():
        text = _replaced(text, ("agents", agent, "noise"), [])
    text = _replaced(text, ("data",), ["data:", *_lines(data)])
    text = _replaced(text, ("run",), [f"run: {flow(run)}"])
    body = text.partition("\n\n")[2]
    marks: dict[str, Any] = {
        "initial_indent": "# ",
        "subsequent_indent": "# ",
        "break_on_hyphens": False,
    }
    header = ["\n".join(textwrap.wrap(each, WIDTH, **marks)) for each in about]
    return "\n".join([f"{SCHEMA}{SCHEMA_FILE}", "\n#\n".join(header), "", body])


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    for key, value in data.items():
        if key in _MEANINGS:
            yield from textwrap.wrap(
                _MEANINGS[key], WIDTH, initial_indent="  # ", subsequent_indent="  # "
            )
            yield f"  {key}:"
            yield from (f"    {inner}: {flow(each)}" for inner, each in value.items())
        elif isinstance(value, Mapping):
            inside = ", ".join(f"{inner}: {flow(each)}" for inner, each in value.items())
            yield f"  {key}: {{{inside}}}"
        else:
            yield f"  {key}: {flow(value)}"


def _replaced(text: str, keys: tuple[str, ...], by: list[str]) -> str:
    """A YAML text with other lines where a key and its value stand; as it is where there is none.

    Lines without a value in their place go with the comment above the key.
    """
    *above, key = keys
    if key not in (places := _children(text, tuple(above))):
        return text
    first, end = places[key]
    lines = text.splitlines()
    while not by and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    while end > first and not re.match(r"\s*[^#\s]", lines[end - 1]):  # what belongs to the next
        end -= 1
    return "\n".join([*lines[:first], *by, *lines[end:], ""])


def _children(text: str, keys: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """The keys below some keys, each with its first line and the one behind its value."""
    node = compose_yaml(text)
    for key in keys:
        inside = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for k, value in inside if k.value == key), None)
    inside = node.value if isinstance(node, yaml.MappingNode) else ()
    return {
        str(k.value): (k.start_mark.line, v.end_mark.line + (v.end_mark.column > 0))
        for k, v in inside
    }
