"""Writes a recipe with all keys and their meanings, and the JSON schema for editors.

Run as a program, it writes recipes/schema.json anew.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic.json_schema import GenerateJsonSchema

from macpo_data.loading.load import load_recipe, recipe_text
from macpo_data.methods.registry import names
from macpo_data.outside import compose_yaml
from macpo_data.recipe.descriptions import meanings
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import Section
from macpo_data.shipped_recipes import recipes_folder

WIDTH = 100  # characters of a line
SCHEMA = "# yaml-language-server: $schema="  # the line that tells an editor where the schema is
SCHEMA_FILE = "macpo.schema.json"
Keys = tuple[str, ...]  # that lead to a value


def full_text(recipe: Recipe, text: str) -> str:
    """A recipe's YAML with every key, each below what it means and what the recipe says of it.

    Args:
        recipe: as loaded.
        text: the YAML that it was loaded from, whose header and comments are kept.

    Returns:
        YAML that loads to the same recipe.
    """
    header, _, body = text.partition("\n\n")
    if not all(line.startswith("#") for line in header.splitlines()):
        header, body = "", text
    paragraphs = [p for p in header.split("\n#\n") if "--full" not in p]  # that is what this is
    lines = ["\n#\n".join(paragraphs), *_lines(recipe, _comments(body), (), set())]
    return "\n".join(lines).lstrip("\n") + "\n"


def _lines(
    section: Section, comments: dict[Keys, str], path: Keys, explained: set[type[Section]]
) -> Iterator[str]:
    """The lines of a section: for each field a comment, its key and its value.

    Args:
        section: what is written.
        comments: what the recipe itself says, by the keys that lead there.
        path: the keys that lead to the section.
        explained: kinds of the sections beside it, whose keys need no second explanation; the
            section's own kind is added.
    """
    is_new, inside = type(section) not in explained, set[type[Section]]()
    explained.add(type(section))
    indent = "  " * len(path)
    for name in type(section).model_fields:
        at, value = (*path, name), getattr(section, name)
        if not path:
            yield ""
        yield from _comment(
            meanings(type(section)).get(name) if is_new else None, comments.get(at), indent
        )
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _lines(value, comments, at, inside)
        elif value and _holds_sections(value):
            yield f"{indent}{name}:"
            for key, each in value.items():
                yield from _comment(None, comments.get((*at, key)), f"{indent}  ")
                yield f"{indent}  {flow(key)}:"
                yield from _lines(each, comments, (*at, key), inside)
        else:
            yield f"{indent}{name}: {flow(section.model_dump(mode='json')[name])}"


def _holds_sections(value: Any) -> bool:
    """Whether it is named sections, as agents are."""
    return isinstance(value, dict) and all(isinstance(each, Section) for each in value.values())


def _comment(meaning: str | None, own: str | None, indent: str) -> list[str]:
    """Comment lines: what a key means, and what the recipe says beyond that."""
    meaning = " ".join((meaning or "").split())
    sentences = re.split(r"(?<=\.)\s+", own or "")
    text = " ".join(filter(None, [meaning, *(s for s in sentences if s not in meaning)]))
    start = f"{indent}# "
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )


class _OneLine(yaml.SafeDumper):
    """YAML that never breaks a text over lines."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if "\n" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_OneLine.add_representer(str, _OneLine.represent_text)


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    dumped = yaml.dump(value, Dumper=_OneLine, default_flow_style=True, width=10**6)
    return dumped.removesuffix("...\n").strip()


def _comments(text: str) -> dict[Keys, str]:
    """What a YAML says of each key: in the comment lines above it, and behind its value."""
    lines = text.splitlines()

    def above(line: int) -> list[str]:
        start = line
        while start and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        return [each.strip().removeprefix("#").strip() for each in lines[start:line]]

    def behind(mark: yaml.Mark) -> list[str]:
        rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
        comment = re.fullmatch(r":?\s+#\s*(\S.*)", rest)
        return [f"Here: {comment[1]}."] if comment else []

    def keys(node: yaml.Node | None, path: Keys) -> Iterator[tuple[Keys, str]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            at = (*path, str(key.value))
            end = key.end_mark if isinstance(value, yaml.MappingNode) else value.end_mark
            yield at, " ".join([*above(key.start_mark.line), *behind(end)])
            yield from keys(value, at)

    return dict(keys(compose_yaml(text), ()))


class _Untitled(GenerateJsonSchema):
    """A schema without titles, which would only say the keys again."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """No field has one."""
        return False


def schema_text() -> str:
    """The recipe's JSON schema, with which an editor explains and completes keys."""
    schema = Recipe.model_json_schema(schema_generator=_Untitled)
    for section in _sections(Recipe):
        kind = schema if section is Recipe else schema["$defs"][section.__name__]
        for form in kind.get("anyOf", [kind]):  # one may be given by its name alone
            for name, field in form.get("properties", {}).items():
                field["description"] = meanings(section)[name]
    schema["properties"]["method"]["enum"] = names()
    return json.dumps({"$schema": _Untitled.schema_dialect, **schema}, indent=1) + "\n"


def _sections(model: type[Section]) -> Iterator[type[Section]]:
    """A section and all that are inside it, whatever stands around them."""
    yield model
    for field in model.model_fields.values():
        for inner in _inside(field.annotation):
            yield from _sections(inner)


def _inside(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for each in get_args(annotation):
        yield from _inside(each)


def recipe_copy(name: str, full: bool) -> str:
    """A recipe's YAML, to be edited, which names the schema beside it that editors read.

    Args:
        name: of a shipped recipe, or a file.
        full: with every key and what it means, not only those that are not at their default.

    Raises:
        MacpoError: there is no such recipe, or it has mistakes.
    """
    _, text = recipe_text(name)
    text = full_text(load_recipe(name), text) if full else text
    lines = [line for line in text.splitlines() if not line.startswith(SCHEMA)]
    return "\n".join([f"{SCHEMA}{SCHEMA_FILE}", *lines, ""])


if __name__ == "__main__":
    Path(str(recipes_folder() / "schema.json")).write_text(schema_text(), "utf-8")
