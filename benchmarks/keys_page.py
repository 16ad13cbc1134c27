"""docs/keys.md: every key of a recipe, its values, its default and its meaning, from the model.

`python -m benchmarks.keys_page` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macpo_data.loading.write import flow, schema_text

FIRST_SOURCE = "WorldData"  # whose keys all other sources have as well
PAGE = Path(__file__).resolve().parents[1] / "docs" / "keys.md"
HEAD = """# Every recipe key

This page is made from the recipe's model by `python -m benchmarks.keys_page`. `macpo init --full`
writes the same into a recipe, and an editor with a YAML language server shows it while you type.

A key is written as it stands in the file, section by section, or as `--set section.key=value`. What
is not written is at its default; *needed* means that there is none. A list is `[a, b]`, and `null`
is nothing.
"""
BOUNDS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false",
         "array": "list", "object": "keys", "null": "null"}  # fmt: skip
Schema = dict[str, Any]


def page() -> str:
    """The page as Markdown."""
    schema = json.loads(schema_text())
    kinds: dict[str, Schema] = schema["$defs"]
    lines = [HEAD]
    lines += ["## At the top", "", *_table(schema, kinds)]
    shown: dict[str, str] = {}  # kinds of sections, by the heading under which their keys stand
    for key, field in schema["properties"].items():
        for name in _sections(field, kinds):
            lines += _section(_heading(key, name, kinds), name, kinds, shown)
    return "\n".join(lines) + "\n"


def _section(path: str, name: str, kinds: dict[str, Schema], shown: dict[str, str]) -> list[str]:
    """A section's heading and keys, then the sections inside it; of a kind shown before, where."""
    if name in shown:
        return ["", f"## {path}", "", f"The same keys as [{shown[name]}](#{slug(shown[name])})."]
    shown[name] = path
    kind, first = _keys(kinds[name]), _keys(kinds[FIRST_SOURCE])
    is_source = path.startswith("data ")
    keys = {key: field for key, field in kind["properties"].items()
            if not is_source or kind is first or field != first["properties"].get(key)}  # fmt: skip
    lines = ["", f"## {path}", "", kind["description"]]
    if is_source:
        lines[-1] += " Every source has these keys." if kind is first else " Its own keys:"
    lines += ["", *_table({**kind, "properties": keys}, kinds)]
    for key, field in keys.items():
        for inner in _sections(field, kinds):
            lines += _section(f"{path.split(' ')[0]}.{key}", inner, kinds, shown)
    return lines


def _heading(key: str, name: str, kinds: dict[str, Schema]) -> str:
    """Where a section stands; of data, with its source."""
    if key == "agents":
        return "agents.NAME"
    if key == "data":
        return f"data with source {kinds[name]['properties']['source']['const']}"
    return key


def _table(kind: Schema, kinds: dict[str, Schema]) -> list[str]:
    """A line for each key."""
    lines = ["| key | values | default | what it means |", "|---|---|---|---|"]
    needed = kind.get("required", [])
    for key, field in kind["properties"].items():
        default = "*needed*" if key in needed else f"`{_shown(field.get('default'))}`"
        if (key not in needed and "default" not in field) or isinstance(field.get("default"), dict):
            default = "see there"
        meaning = field["description"].replace("|", "\\|").replace("<", "\\<")
        lines.append(f"| `{key}` | {_values(field, kinds)} | {default} | {meaning} |")
    return lines


def _shown(value: Any) -> str:
    return flow(value) if value != "" else '""'


def _values(field: Schema, kinds: dict[str, Schema]) -> str:
    """What a key may be, in words."""
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_values(option, kinds) for option in options))
    if "$ref" in field:
        return _of_kind(kinds[field["$ref"].rpartition("/")[2]], kinds)
    if field.get("type") == "object" and _sections(field, kinds):
        return "sections by name"
    if field.get("type") == "array":
        inner = field.get("items", {})
        return f"list of {_values(inner, kinds)}" if inner else "list"
    words = [TYPES[field["type"]] if "type" in field else "anything"]
    words += [text.format(_number(field[name])) for name, text in BOUNDS.items() if name in field]
    return ", ".join(words)


def _of_kind(kind: Schema, kinds: dict[str, Schema]) -> str:
    return _values({"anyOf": kind["anyOf"]}, kinds) if "anyOf" in kind else "section"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def _keys(kind: Schema) -> Schema:
    """Of a section that may be given by its name alone, the form with keys."""
    return next((form for form in kind.get("anyOf", [kind]) if "properties" in form), kind)


def _sections(field: Schema, kinds: dict[str, Schema]) -> list[str]:
    """The kinds of sections that a key may hold; any other value is none."""
    return [name for name in dict.fromkeys(_refs(field)) if "properties" in _keys(kinds[name])]


def _refs(field: Any) -> Iterator[str]:
    """What a key's schema refers to, in order."""
    if isinstance(field, dict):
        if isinstance(ref := field.get("$ref"), str):
            yield ref.rpartition("/")[2]
        for name, value in field.items():
            if name not in ("default", "discriminator"):
                yield from _refs(value)
    elif isinstance(field, list):
        for value in field:
            yield from _refs(value)


def slug(heading: str) -> str:
    """The anchor that GitHub and the site give a heading."""
    plain = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return plain.replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
